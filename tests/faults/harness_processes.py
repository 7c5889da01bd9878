"""Kills processes in the middle of steps 5 to 7: commands, the service, concentrators, and the workers of each.

A command is given at the utility, for a meter behind a concentrator that holds keys or one that relays. While it runs,
one process is killed. What was killed is started again, as whoever watches over services does; what is in doubt is
resolved, and the command is given once more, which must succeed.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from signal import SIGKILL

from hsmkm.steps.renew import RECEIPT_SECONDS
from hsmkm.store import key_sets
from hsmkm.store.key_set import KeyState
from tests.faults.harness_crash import DEFECTS
from tests.faults.operations import disorder
from tests.faults.report import FOLDER, Report
from tests.field import KINDS, Field, Running, deliver_meters, open_field
from tests.realm import ACTOR, HSMKM, Realm, build_realm, title_of

COMMANDS = ("register", "renew", "read")
VICTIMS = ("command", "command's worker", "concentrator", "concentrator's worker", "service", "service's worker")
READING = "1.0.1.8.0.255"
MOMENTS = 3
SECONDS = 3.0
"""What a command takes at first; afterwards what the last one took that nothing happened to."""

PATIENCE = RECEIPT_SECONDS + 30
"""Within so many seconds a command is done, though a receipt it waits for should not come."""

HUNG = "it was not done within"
RESOLUTIONS = 4
BROKEN = "killed before it is recorded"
METERS = (1, 2)
CONTROL_METER = 3


@dataclass(frozen=True, slots=True)
class Kill:
    """One process that is killed when so much of a command is done."""

    command: str
    victim: str
    concentrator: str
    part: float

    def __str__(self) -> str:
        return f"{self.command} through {self.concentrator}, SIGKILL of the {self.victim} at {self.part:.0%}"


@dataclass
class Scene:
    """The utility with its service, both concentrators with a meter each, and what runs now."""

    live: Field
    places: dict[str, str]
    running: dict[str, Running] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)

    def words(self, command: str, serial: int, concentrator: str) -> list[str]:
        title = title_of(serial)
        if command == "register":
            place = ["--address", self.places[title], "--concentrator", concentrator]
            return ["meter", "register", title, *place, "--wait", "20"]
        return ["renew", title] if command == "renew" else ["meter", "read", title, READING]

    def begin(self, words: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = [str(HSMKM), "--home", str(self.live.realm.home("utility")), "--actor", ACTOR, *words]
        return subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )

    def give(self, words: list[str]) -> str:
        """Give a command to its end; what it said if it failed."""
        began = time.monotonic()
        process = self.begin(words)
        said = _end(process)
        if process.returncode == 0:
            self.took[words[0]] = time.monotonic() - began
        return said if process.returncode else ""

    def strike(self, kill: Kill, serial: int) -> tuple[bool, list[str]]:
        """Kill during a command, then have all be in order again; whether the kill hit, and what is not in order."""
        words = self.words(kill.command, serial, kill.concentrator)
        process = self.begin(words)
        owner, _, of_worker = kill.victim.partition("'s ")
        time.sleep(kill.part * self.took.get(words[0], SECONDS))
        victim = process.pid if owner == "command" else self.running[self._name(kill)].process.pid
        found = _children(victim) if of_worker else [victim]
        hit = process.poll() is None and bool(found)
        for each in found:
            with suppress(ProcessLookupError):
                os.kill(each, SIGKILL)
        self._start_again(found)
        said = _end(process)
        self._start_again(())
        problems = [f"it failed as a defect: {said}" for sign in (*DEFECTS, HUNG) if sign in said]
        problems += self.settled(words, serial, kill.concentrator)
        return hit, [f"{kill}: {problem}" for problem in problems]

    def settled(self, words: list[str], serial: int, concentrator: str) -> Iterator[str]:
        """Resolve and give the command again; what is then not in order."""
        for _ in range(RESOLUTIONS):
            if not (said := self.give(["resolve", "--all"])):
                break
        if said := said or self.give(words):
            yield f"done again, it failed: {said}"
        elif said := self.give(self.words("read", serial, concentrator)):
            yield f"the meter does not read: {said}"
        for name in ("utility", concentrator):
            with self.live.realm.open(name) as party:
                yield from (f"{name}: {problem}" for problem in disorder(party))
                with party.store.read() as tx:
                    states = [state for _, state in key_sets.for_meter(tx, bytes.fromhex(title_of(serial)))]
            if (name == "utility" or KINDS[name] == "client") and states.count(KeyState.ACTIVE) != 1:
                yield f"{name}: {states.count(KeyState.ACTIVE)} generations are active"

    @staticmethod
    def _name(kill: Kill) -> str:
        return "utility" if kill.victim.startswith("service") else kill.concentrator

    def _start_again(self, killed: Sequence[int]) -> None:
        """Start each process that was killed, or ended since, as whoever watches over it does at once."""
        for name, running in self.running.items():
            if running.process.pid in killed:
                running.process.wait(PATIENCE)
            if running.process.poll() is not None:
                self.running[name] = self.live.serve() if name == "utility" else self.live.concentrate(name)


def _end(process: subprocess.Popen[str]) -> str:
    """Wait for a command; what it said, and that it hung if it had to be killed."""
    with process:
        try:
            return process.communicate(timeout=PATIENCE)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            return f"{HUNG} {PATIENCE} s: {process.communicate()[1]}"


def _children(process: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


@contextmanager
def scene() -> Iterator[Scene]:
    """Take meters through steps 1 to 5, one behind each concentrator, and that of the control behind the relay."""
    serials = (*METERS, CONTROL_METER)
    with tempfile.TemporaryDirectory(prefix="hsmkm-processes-") as folder:
        realm: Realm = build_realm(Path(folder) / "realm")
        deliver_meters(realm, dict.fromkeys(serials, 0))
        with open_field(realm) as live:
            opened = Scene(live, {})
            opened.running["utility"] = live.serve()
            for name in KINDS:
                opened.running[name] = live.concentrate(name)
            opened.places |= dict(live.meters(*serials))
            for serial in serials:
                said = opened.give(opened.words("register", serial, _concentrator(serial)))
                assert not said, said
            yield opened


def _concentrator(serial: int) -> str:
    client, relay = KINDS
    return client if serial == 1 else relay


def every_kill() -> list[tuple[int, Kill]]:
    """List every victim during every command, at moments spread over it, with the meter that it is about."""
    parts = [(number + 0.5) / MOMENTS for number in range(MOMENTS)]
    combined = product(METERS, COMMANDS, VICTIMS, parts)
    return [(serial, Kill(command, victim, _concentrator(serial), part)) for serial, command, victim, part in combined]


def negative_control(opened: Scene) -> int:
    """Renew with a worker that is killed before it records what it sent; how much of that is found out."""
    environment = {"BROKEN_VARIANT": BROKEN, "PYTHONPATH": f"{FOLDER / 'site'}:{FOLDER.parent.parent}"}
    words, concentrator = ["renew", title_of(CONTROL_METER)], _concentrator(CONTROL_METER)
    with opened.begin(words, environment) as process:
        process.communicate(timeout=PATIENCE)
    return len(list(opened.settled(words, CONTROL_METER, concentrator)))


def run(sample: int | None, seed: int) -> Report:
    """Make all kills, those of each meter beside the others, or `sample` of them; and those of the negative control."""
    every = every_kill()
    if sample is not None:
        return run_lane(random.Random(seed).sample(every, sample), control=True)  # noqa: S311 - a choice that a seed repeats
    lanes = [[each for each in every if each[0] == serial] for serial in METERS]
    with ProcessPoolExecutor(len(lanes), mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(run_lane, lanes, (True, False)))
    violations = tuple(violation for part in parts for violation in part.violations)
    return Report("processes", sum(part.hits for part in parts), violations, sum(part.found for part in parts))


def run_lane(chosen: Sequence[tuple[int, Kill]], control: bool) -> Report:  # noqa: FBT001 - mapped over by position
    """Make these kills in a scene of their own, one after the other."""
    hits, violations = 0, list[str]()
    with scene() as opened:
        for serial, kill in chosen:
            hit, problems = opened.strike(kill, serial)
            hits += hit
            violations += problems
        return Report("processes", hits, tuple(violations), negative_control(opened) if control else 0)
