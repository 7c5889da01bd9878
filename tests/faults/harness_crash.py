"""Kills and fails every operation at every site, does it again, and looks whether a promise was broken.

The sites of an operation are listed by one traced run of it. Then it runs on copies of the same folder, each time
killed or refused at another site by strace; what it had shown to the world until then is noted; it is done again, and
the party, the files and what went over the wire are looked through.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from signal import SIGKILL
from typing import TypeVar

from hsmkm.simulator.state import load
from tests.faults import tracing, wire
from tests.faults.operations import FLEET, OPERATIONS, Place
from tests.faults.realms import Realms
from tests.faults.report import Report
from tests.faults.stage import Ended, Request, Stage
from tests.faults.tracing import KILL, Site
from tests.field import state_path
from tests.realm import ACTOR, HSMKM, TITLES, Realm
from tests.tap import tapping

T = TypeVar("T")
LANES = 2
CONTROLS = {"export": "rename before commit", "inject": "counters without commit", "renew": "sent after the transfer"}
CONTROL_SITES, FEW_CONTROL_SITES = 40, 12
LOG = "store.db-wal"
"""Where the controls are killed: each is broken in what it does before a commit instead of after it, or without it."""

SHOWN = ("packages/*.p7m", "receipts/*.p7m")
THINNED = {("pwrite64", LOG): 2, **dict.fromkeys(product(("openat", "write"), ("token",)), 10)}
"""Of so many calls of a kind one is a site: a page of the log takes two writes, and SoftHSM cuts a file before each."""

DEFECTS = ("this is a defect", "Traceback")
OTHER_SITES = 8
"""So many kills of what a command starts: its worker's calls are the operation's, which are struck one by one."""


@dataclass(frozen=True, slots=True, order=True)
class Injection:
    """One fault at one site of one operation."""

    operation: str
    site: Site
    fault: str

    def __str__(self) -> str:
        return f"{self.operation}, {self.fault} at {self.site}"


@dataclass
class Lane:
    """One copy of everything: a stage, its realms and the tap before the meter."""

    stage: Stage
    realms: Realms
    folder: Path
    known: set[bytes] = field(default_factory=set)

    def sites(self, operation: str) -> list[Site]:
        """List the sites of an operation that nothing happens to; raises AssertionError where that fails."""
        realm = self.realms.copy(operation, self.folder)
        with self._meter(operation, realm):
            ended = self._traced(operation, realm, "", "")
        assert ended.answer is not None, ended
        assert ended.answer.error == "", ended
        if OPERATIONS[operation].words is None:
            return tracing.sites(self._trace)
        orchestrating, *others = tracing.sites_of_each(self._trace)
        calls = {(site.call, site.ordinal): site for site in [*chain(*others), *orchestrating]}
        mine = {(site.call, site.ordinal) for site in orchestrating}
        return [*orchestrating, *spread([site for call, site in calls.items() if call not in mine], OTHER_SITES, 1)]

    def inject(self, injection: Injection, broken: str = "") -> tuple[bool, list[str]]:
        """Run an operation with a fault and once more without; whether it was hit, and what is wrong after it."""
        operation = injection.operation
        realm = self.realms.copy(operation, self.folder)
        self.realms.tap.streams.clear()
        self.known = set()
        with self._meter(operation, realm):
            first = self._traced(operation, realm, tracing.injection(injection.site, injection.fault), broken)
            shown = _shown(realm, operation)
            _set_aside(realm)
            self._learn(realm)
            again = self.stage.run(Request("again", operation, self._place(realm), broken=broken))
            self._learn(realm)
        hit = first.signal == SIGKILL or tracing.was_refused(self._trace)
        problems = [*_of_the_first(first, injection.fault), *_of_the_second(again)]
        problems += [f"what was shown is gone: {name}" for name in sorted(shown - _shown(realm, operation))]
        problems += self._iv_problems(operation)
        return hit, [f"{injection}: {problem}" for problem in problems]

    @property
    def _trace(self) -> Path:
        return self.folder.with_name("trace")

    def _place(self, realm: Realm) -> Place:
        return Place(str(realm.folder), self.realms.tap.address)

    def _traced(self, operation: str, realm: Realm, inject: str, broken: str) -> Ended:
        words = OPERATIONS[operation].words
        if words is not None:
            command = [str(HSMKM), "--home", str(realm.home(OPERATIONS[operation].home)), "--actor", ACTOR]
            return tracing.run_command([*command, *words(self._place(realm))], self._trace, inject)
        process = self.stage.begin(Request("act", operation, self._place(realm), held=True, broken=broken))
        with tracing.traced(process, self._trace, inject):
            return self.stage.ended()

    @contextmanager
    def _meter(self, operation: str, realm: Realm) -> Iterator[None]:
        if not OPERATIONS[operation].speaks:
            yield
            return
        with self.realms.meter(realm):
            self._learn(realm)
            yield

    def _learn(self, realm: Realm) -> None:
        path = state_path(realm, FLEET[0])
        if path.exists():
            self.known |= set(load(path).keys.values())

    def _iv_problems(self, operation: str) -> Iterator[str]:
        if not OPERATIONS[operation].speaks:
            return
        title = bytes.fromhex(TITLES[OPERATIONS[operation].home])
        uses, unopened = wire.uses(title, map(bytes, self.realms.tap.streams), self.known)
        if not uses:
            yield "no APDU was recorded"
        yield from (f"IV {counter} was used twice under one key" for counter in wire.repeated(uses))
        del unopened


def _of_the_first(ended: Ended, fault: str) -> Iterator[str]:
    if ended.answer is None and (fault != KILL or ended.signal != SIGKILL):
        yield f"it ended by signal {ended.signal} without an answer"
    if ended.answer is not None and any(sign in ended.answer.hint for sign in DEFECTS):
        yield f"it failed as a defect: {ended.answer.error}"


def _of_the_second(ended: Ended) -> Iterator[str]:
    if ended.answer is None:
        yield f"done again, it ended by signal {ended.signal}"
        return
    if ended.answer.error:
        yield f"done again, it failed: {ended.answer.error}"
    yield from ended.answer.problems


def _shown(realm: Realm, operation: str) -> set[tuple[str, str]]:
    """Give name and digest of every package and receipt that others may have seen by now."""
    home = realm.home(OPERATIONS[operation].home)
    paths = [path for pattern in SHOWN for path in home.glob(pattern)]
    return {(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths}


def _set_aside(realm: Realm) -> None:
    """Keep the certificates that others may have seen: another issue writes others in their place."""
    if (realm.folder / "issued").is_dir():
        shutil.copytree(realm.folder / "issued", realm.folder / "shown")


@contextmanager
def lane() -> Iterator[Lane]:
    """Open a lane in a temporary folder."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hsmkm-crash-")))
        tap = stack.enter_context(tapping("127.0.0.1:9"))
        stage = stack.enter_context(Stage())
        yield Lane(stage, Realms(folder / "states", tap), folder / "run")


def every_injection(opened: Lane, operations: Sequence[str]) -> list[Injection]:
    """List a kill at every site of these operations, and each error at the first and the last call of a kind on a file.

    A kill at each call stands for every logical step; what a refused call does depends on what it was for. Of the calls
    that make up one write of the database's log or of SoftHSM only some are taken.
    """
    found = []
    for operation in operations:
        listed = opened.sites(operation)
        last = {(site.call, site.kind): site for site in listed}
        first = {(site.call, site.kind): site for site in reversed(listed)}
        ends = {*first.values(), *last.values()}
        for number, site in enumerate(listed):
            if OPERATIONS[operation].words is not None:
                found.append(Injection(operation, site, KILL))
            elif site in ends:
                found += [Injection(operation, site, fault) for fault in site.faults()]
            elif number % THINNED.get((site.call, site.kind), 1) == 0:
                found.append(Injection(operation, site, KILL))
    return found


def chosen(found: Sequence[Injection], sample: int | None, seed: int) -> list[Injection]:
    """Choose a sample of injections, from all operations in turn; all of them in their order where there is none."""
    if sample is None:
        return list(found)
    shuffled = random.Random(seed).sample(list(found), len(found))  # noqa: S311 - a choice that a seed repeats
    turns: Counter[str] = Counter()
    ranked = []
    for one in shuffled:
        turns[one.operation] += 1
        ranked.append((turns[one.operation], one))
    return [one for _, one in sorted(ranked, key=lambda item: item[0])][:sample]


def spread(found: Sequence[T], count: int, seed: int) -> list[T]:
    """Choose so many evenly over the whole operation, from a beginning that the seed chooses."""
    step = max(len(found) / count, 1.0)
    begin = random.Random(seed).random() * step  # noqa: S311 - a choice that a seed repeats
    places = (int(begin + number * step) for number in range(count))
    return [found[place] for place in places if place < len(found)]


@dataclass(frozen=True, slots=True)
class Part:
    """What one lane found."""

    hits: int
    violations: tuple[str, ...]


def inject_all(opened: Lane, injections: Sequence[Injection]) -> Part:
    """Make injections one after the other."""
    hits, violations = 0, list[str]()
    for injection in injections:
        hit, problems = opened.inject(injection)
        hits += hit
        violations += problems
    return Part(hits, tuple(violations))


def found_in_controls(opened: Lane, each: int, seed: int) -> int:
    """Count the injections that find something in variants that are broken on purpose; 0 if one goes undetected."""
    found = []
    for operation, broken in CONTROLS.items():
        kills = [one for one in every_injection(opened, [operation]) if one.fault == KILL and one.site.kind == LOG]
        found.append(sum(bool(opened.inject(one, broken)[1]) for one in spread(kills, each, seed)))
    return sum(found) if all(found) else 0


def run_lane(number: int, seed: int) -> tuple[Part, int]:
    """Do what one of several lanes has to do; the first does the negative control too."""
    with lane() as opened:
        part = inject_all(opened, every_injection(opened, list(OPERATIONS))[number::LANES])
        return part, found_in_controls(opened, CONTROL_SITES, seed) if number == 0 else 0


def run(sample: int | None, seed: int) -> Report:
    """Make all injections, or `sample` of them, and the negative control."""
    if sample is not None:
        with lane() as opened:
            part = inject_all(opened, chosen(every_injection(opened, list(OPERATIONS)), sample, seed))
            return Report("crash", part.hits, part.violations, found_in_controls(opened, FEW_CONTROL_SITES, seed))
    with ProcessPoolExecutor(LANES, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(run_lane, range(LANES), [seed] * LANES))
    violations = tuple(violation for part, _ in parts for violation in part.violations)
    return Report("crash", sum(part.hits for part, _ in parts), violations, sum(found for _, found in parts))
