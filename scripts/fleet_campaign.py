"""Renews a fleet of simulated meters by a campaign, in which keys go wrong and workers die, and checks how each ended.

A factory provisions the meters, and gives their keys to a line that writes them into the fleet of `hsmkm simulate
fleet`. Then `hsmkm campaign` renews the global keys of all. With SQLite its workers are processes of the command; with
PostgreSQL they are two `hsmkm worker run`, of which one is killed half-way, and the database is restarted twice.

Proved at the end: each meter is done, or listed with a reason; a meter that is done holds the keys that the store
calls in force; no client had two associations with a meter at once; and no invocation counter came twice under a key.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hsmkm.steps.exporting import export
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.store import key_sets, key_states, meters
from hsmkm.store.key_set import KeyState
from scripts.fleet_files import write_fleet
from tests import postgresql
from tests.interop.package_opener import NAME as LINE
from tests.interop.package_opener import Keys, PackageOpener
from tests.realm import HSMKM, Realm, build_realm, title_of

CAMPAIGN = "renewal"
IN_ONE_PACKAGE = 5000
FIRST_ADDRESS = IPv4Address("127.0.0.1")
PROVED = ("guek", "gak")
"""A meter that acknowledges a GBEK and keeps the old one is not found out: nothing it answers rests on it."""

PARTLY_DONE = 7
PATIENCE = 7200.0
LOOK_SECONDS = 3.0


class LabError(Exception):
    """A command or a process did not do what it is there for."""


@dataclass(frozen=True)
class Plan:
    """How many meters are renewed by how many workers, and what goes wrong meanwhile."""

    meters: int
    seed: int = 1
    workers: int = 2
    threads: int = 2
    fault: float = 0.05
    loss: float = 0.001
    reboot: float = 0.0005
    attempts: int = 8
    back_off: float = 2.0


@dataclass(frozen=True)
class Figures:
    """How the campaign ended, in meters; the last four are 0 unless a promise was broken."""

    meters: int
    done: int
    listed: int
    seconds: float
    meters_per_second: float
    faults: int
    exchanges: int
    killed: int
    restarts: int
    lost: int
    other_keys: int
    counters_twice: int
    two_at_once: int

    @property
    def held(self) -> bool:
        """Tell whether every promise held."""
        return not (self.lost or self.other_keys or self.counters_twice or self.two_at_once)


class Lab:
    """A factory with a fleet, and the commands that are run in it."""

    def __init__(self, realm: Realm, plan: Plan) -> None:
        self.realm = realm
        self.plan = plan
        self.titles = [title_of(serial) for serial in range(1, plan.meters + 1)]
        self._folder = realm.folder / "fleet"
        self._folder.mkdir()
        self.killed = self.restarts = 0

    def prepare(self) -> None:
        """Provision the meters, write their keys into the fleet as a line does, and put them in force."""
        opener = PackageOpener.join(self.realm)
        with self.realm.open("factory") as party:
            provision(party, self.realm.order(*range(1, self.plan.meters + 1)), "line")
            keys = self._delivered(party, opener)
        write_fleet(self._folder, self.titles, self.realm.initial_keys(), keys)

    def _delivered(self, party: Party, opener: PackageOpener) -> dict[str, Keys]:
        """Give the keys that the store calls in force, as a package that it makes has them."""
        found: dict[str, Keys] = {}
        for some in _parts(self.titles):
            found |= opener.open(export(party, "delivery", LINE, some, None).path)
        return found

    @contextmanager
    def fleet(self) -> Iterator[None]:
        """Run the fleet, and put its meters in force where they are."""
        plan, folder = self.plan, self._folder
        chances = ("--fault", plan.fault, "--loss", plan.loss, "--reboot", plan.reboot, "--seed", plan.seed, "--mixed")
        files = ("--states", folder / "states", "--report", folder / "report")
        command = [HSMKM, "simulate", "fleet", folder / "first.json", "--meters", plan.meters, *chances, *files]
        with self._running(command, "fleet") as process:
            port = int(self._ready(process, "fleet")[1])
            with self.realm.open("factory") as party:
                self._put_in_force(party, port)
            yield

    def _put_in_force(self, party: Party, port: int) -> None:
        with party.store.begin("meters-in-force", "fleet", {"port": port}) as tx:
            for number, title in enumerate(self.titles):
                octets = bytes.fromhex(title)
                ((key_set, _),) = key_sets.for_meter(tx, octets)
                key_states.transition(tx, key_set.ref, KeyState.ACTIVE)
                address = f"{FIRST_ADDRESS + number}:{port}"
                meters.update(tx, replace(meters.require(tx, octets), address=address))

    def renew_here(self) -> None:
        """Have the workers of the command do it."""
        self._create()
        shape = ("--workers", self.plan.workers, "--threads", self.plan.threads)
        self._command("campaign", "start", CAMPAIGN, *shape, good=(0, PARTLY_DONE))

    def renew_by_workers(self) -> None:
        """Have two `hsmkm worker run` do it, one of which is killed half-way; the database is restarted twice."""
        self._create()
        self._command("campaign", "start", CAMPAIGN, "--detach")
        with ExitStack() as stack:
            first = stack.enter_context(self._worker("first"))
            stack.enter_context(self._worker("second"))
            self._await(1 / 4)
            postgresql.restart()
            self._await(1 / 2)
            os.killpg(first.pid, signal.SIGKILL)
            self.killed += 1
            stack.enter_context(self._worker("third"))
            self._await(3 / 4)
            postgresql.restart()
            self.restarts = 2
            self._await(1.0)

    def _create(self) -> None:
        plan = self.plan
        limits = ("--attempts", plan.attempts, "--back-off", plan.back_off, "--slice", max(4, plan.meters // 100))
        self._command("campaign", "create", CAMPAIGN, "all", "--keys", "guek,gak,gbek", *limits)

    @contextmanager
    def _worker(self, name: str) -> Iterator[subprocess.Popen[str]]:
        command = [HSMKM, "--home", self.realm.home("factory"), "worker", "run", "--workers", 1]
        with self._running([*command, "--threads", self.plan.threads], name) as process:
            self._ready(process, name)
            yield process

    @contextmanager
    def _running(self, command: Sequence[object], name: str) -> Iterator[subprocess.Popen[str]]:
        """Run a process in a group of its own, and end it with SIGTERM."""
        with (
            (self._folder / f"{name}.log").open("w") as log,
            subprocess.Popen(  # noqa: S603 - our own program
                list(map(str, command)), stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            ) as process,
        ):
            try:
                yield process
            finally:
                process.terminate()
                process.wait(60)

    def _ready(self, process: subprocess.Popen[str], name: str) -> list[str]:
        """Wait for the line that says READY, and give its words."""
        words = process.stdout.readline().split() if process.stdout else []
        if words[:1] != ["READY"]:
            raise LabError(f"{name} did not start: {(self._folder / name).with_suffix('.log').read_text()}")
        return words

    def _await(self, share: float) -> None:
        """Wait until so many of the meters have ended one way or the other, or the campaign has."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            row = self._standing()
            ended = row and row["state"] != "running"
            if ended or (row and share < 1 and row["done"] + row["gave_up"] >= share * row["meters"]):
                return
            time.sleep(LOOK_SECONDS)
        raise LabError(f"the campaign did not come to {share:.0%} of its meters within {PATIENCE:g} s")

    def _standing(self) -> dict[str, Any]:
        """Say where the campaign stands; nothing while the database is away."""
        rows = json.loads(self._command("campaign", "list", good=range(8)) or "[{}]")
        return dict(rows[0])

    def _command(self, *words: object, good: Collection[int] = (0,)) -> str:
        """Run a command of the factory and give what it prints; LabError for another exit code than a good one."""
        command = [HSMKM, "--home", self.realm.home("factory"), "--output", "json", *words]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)  # noqa: S603 - ours
        if done.returncode not in good:
            raise LabError(f"{words[:2]} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def figures(self, seconds: float) -> Figures:
        """Compare what the store, the report of the campaign, and the fleet say."""
        row = self._standing()
        listed = {item["meter"] for item in json.loads(self._command("campaign", "report", CAMPAIGN))}
        totals = json.loads((self._folder / "report").read_text().splitlines()[0])
        held = dict(_held(self._folder / "states"))
        with self.realm.open("factory") as party:
            meant = self._delivered(party, PackageOpener.of(self.realm))
        done = [title for title in self.titles if title not in listed]
        other = [title for title in done if any(held[title][role] != meant[title][role].hex() for role in PROVED)]
        faults = sum(totals.get(name, 0) for name in ("reject", "drop-before", "drop-after", "lie", "first-only"))
        return Figures(
            meters=self.plan.meters,
            done=row["done"],
            listed=len(listed),
            seconds=round(seconds, 1),
            meters_per_second=round(self.plan.meters / seconds, 1),
            faults=faults,
            exchanges=totals["exchanges"],
            killed=self.killed,
            restarts=self.restarts,
            lost=self.plan.meters - row["done"] - len(listed),
            other_keys=len(other),
            counters_twice=totals["counters-twice"],
            two_at_once=totals["two-associations-at-once"],
        )


def renewed(realm: Realm, plan: Plan) -> Figures:
    """Renew a fleet, by two `hsmkm worker run` where the stores lie in PostgreSQL."""
    lab = Lab(realm, plan)
    lab.prepare()
    with lab.fleet():
        begun = time.monotonic()
        if postgresql.chosen():
            lab.renew_by_workers()
        else:
            lab.renew_here()
        seconds = time.monotonic() - begun
    return lab.figures(seconds)


def _held(path: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            title, _, _, _, changed = json.loads(line)
            yield title, changed["keys"]


def _parts(titles: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for begin in range(0, len(titles), IN_ONE_PACKAGE):
        yield tuple(titles[begin : begin + IN_ONE_PACKAGE])


def main(arguments: list[str]) -> int:
    """Make a realm, renew its fleet, and print the figures."""
    parser = argparse.ArgumentParser(prog="scripts/fleet-campaign", description=__doc__)
    parser.add_argument("--meters", type=int, default=10_000, metavar="N", help="so many meters (10000)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="what decides the faults (1)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes with SQLite (2)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of each worker (2)")
    parser.add_argument(
        "--postgresql", action="store_true", help="keep the stores in a PostgreSQL that is started for it"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave everything in this folder, which is made")
    options = parser.parse_args(arguments)
    if options.postgresql:
        os.environ[postgresql.CHOICE] = "postgresql"
    folder = options.keep or Path(tempfile.mkdtemp(prefix="hsmkm-fleet-"))
    try:
        folder.mkdir(exist_ok=options.keep is None)
        plan = Plan(options.meters, options.seed, options.workers, options.threads)
        found = renewed(build_realm(folder / "realm"), plan)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)
    sys.stdout.write(json.dumps(asdict(found) | {"held": found.held}) + "\n")
    return 0 if found.held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
