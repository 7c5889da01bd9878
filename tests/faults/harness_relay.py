"""A relay before an independent meter that lies once, at every answer in turn: forged counter errors, replays, drops.

Each set of keys is renewed with the lie at the first answer, then at the second, and so on until a renewal comes to its
end before the lie; and so is a renewal resolved whose answer was lost. Some lies are about the counter that the public
client reads in clear. One more is an acknowledgement that was recorded, for a key that never arrived.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count, product
from multiprocessing import get_context
from unittest.mock import patch

from hsmkm.errors import PartlyDoneError
from hsmkm.steps.renew import ALL_KEYS, GLOBAL_KEYS
from hsmkm.store import counters
from hsmkm.store.store import Transaction
from hsmkm.token.types import KeyRole, MeterRole
from tests.faults.meter_bench import LARGEST_STEP, ROUNDS, Bench, Subject, open_bench, realm_of_its_own
from tests.faults.meter_lies import ALWAYS, ONCE, Lie, honest, lying, told_high
from tests.faults.report import Report
from tests.realm import Realm

ROLES: dict[str, tuple[MeterRole, ...]] = {
    "globals": GLOBAL_KEYS,
    "gak": (KeyRole.GAK,),
    "all": ALL_KEYS,
    "gbek": (KeyRole.GBEK,),
}
MORE_THAN_ALL = 40
"""Answers that no renewal takes; the places of a sample lie below what most of them take."""

USUAL = 8
TRANSFER = 3
"""The place of the answer to the first key_transfer: those to AARQ and to f(StoC) come before."""


@dataclass(frozen=True, slots=True)
class Case:
    """One lie, told at one answer of a renewal and of what `resolve` does after it."""

    keys: str
    lie: Lie
    place: int
    recorded: bool = False
    resolving: bool = False

    def __str__(self) -> str:
        what = "recorded acknowledgement" if self.recorded else self.lie.__name__
        return f"{self.keys}, {what} at answer {self.place}{' to resolve' if self.resolving else ''}"


RECORDED = Case("gbek", honest, TRANSFER, recorded=True)
FAR_OFF = Case("gbek", told_high, 4, resolving=True)
"""A probe of `resolve` that ends by our own refusal, before it is sent."""


def walk(bench: Bench, case: Case) -> tuple[int, list[str]]:
    """Renew through the lying relay, then let it be honest and resolve; 0 hits where the lie was never told."""
    subject = bench.subject()
    counter = bench.counter(subject)
    lost = ("drop-after",) if case.resolving else ()
    bench.fleet.set(subject.port, "after-response", ic_reset=bool(case.place % 2), faults=lost)
    recording = _recording(bench, subject, case) if case.recorded else ()
    if case.resolving:
        bench.renewed(subject, ROLES[case.keys])
    with lying(subject.port, case.place, case.lie, recording) as relay:
        bench.reached_at(subject, relay.port)
        if case.resolving:
            bench.resolved(subject)
        else:
            bench.renewed(subject, ROLES[case.keys])
    bench.reached_at(subject, subject.port)
    found = _settled(bench, subject) or bench.untrue(subject)
    relay.deliver()
    found = found or bench.untrue(subject)
    if bench.counter(subject) > counter + LARGEST_STEP:
        found.append(f"our counter went from {counter} to {bench.counter(subject)}")
    if bench.fleet.tell(subject.port)["repeated_gueks"]:
        found.append("a GUEK was sent twice")
    if found:
        bench.spoil()
    return relay.told, [f"{case}: {text}" for text in found]


def _recording(bench: Bench, subject: Subject, case: Case) -> tuple[bytes, ...]:
    """Record all answers of an honest renewal of the same keys."""
    with lying(subject.port, 0, honest) as relay:
        bench.reached_at(subject, relay.port)
        bench.renewed(subject, ROLES[case.keys])
    return tuple(relay.seen)


def _settled(bench: Bench, subject: Subject) -> list[str]:
    for _ in range(ROUNDS):
        outcome = bench.resolved(subject)
        if outcome.error is None:
            return []
        if not isinstance(outcome.error, PartlyDoneError):
            return [f"it ended as {outcome.state}: {outcome.error.message}"]
    return [f"not settled after {ROUNDS} rounds: {outcome.detail}"]


def sweep(bench: Bench, keys: str) -> Iterator[tuple[int, list[str]]]:
    """Lie at each answer in turn until a renewal of these keys ends before the lie."""
    if keys == RECORDED.keys:
        yield walk(bench, RECORDED)
    for lie, resolving in product((*ONCE, *ALWAYS), (False, True)):
        for place in count(1):
            hits, found = walk(bench, Case(keys, lie, place, resolving=resolving))
            yield hits, found
            if (not hits and place > 1) or place == MORE_THAN_ALL:
                break


def sample_of(number: int, seed: int) -> list[Case]:
    """Choose cases by chance."""
    cases = [Case(*case) for case in product(ROLES, (*ONCE, *ALWAYS), range(1, USUAL), (False,), (False, True))]
    return [RECORDED, FAR_OFF, *random.Random(seed).sample(cases, min(number, len(cases)))]  # noqa: S311 - which cases are tried is no secret


@contextmanager
def counters_believed() -> Iterator[None]:
    """Break what bounds a counter that is told in clear: it is believed at once, however far off."""
    real = counters.reserve_trial

    def believed(tx: Transaction, identity: bytes, title: bytes, hint: int, amount: int, *_bound: object) -> range:
        found = real(tx, identity, title, hint, amount, counters.LAST)
        counters.confirm_trial(tx, identity, title, found[-1])
        return found

    with patch.object(counters, "reserve_trial", believed):
        yield


@contextmanager
def recordings_believed() -> Iterator[None]:
    """Break the check of the meter's counters: an answer that was given before is taken."""

    def believed(*_: object) -> None:
        """Take it."""

    with patch.object(counters, "accept_received", believed), patch.object(counters, "refuse_repeated", believed):
        yield


BROKEN: dict[Callable[[], AbstractContextManager[None]], Case] = {
    counters_believed: Case("gak", told_high, 1),
    recordings_believed: RECORDED,
}


def negative_control(bench: Bench) -> int:
    """Count what is found in the broken variants; 0 where one of them is not found out."""
    found = []
    for variant, case in BROKEN.items():
        with variant():
            found.append(len(walk(bench, case)[1]))
    return sum(found) if all(found) else 0


def run(sample: int | None, seed: int, realm: Realm | None = None) -> Report:
    """Try all cases, those of each set of keys beside the others; or a sample, in a realm that is given."""
    if sample is None:
        with ProcessPoolExecutor(len(ROLES), mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(run_lane, ROLES))
        violations = tuple(text for part in parts for text in part.violations)
        return Report("relay", sum(part.hits for part in parts), violations, sum(part.found for part in parts))
    if realm is None:
        with realm_of_its_own() as made:
            return run(sample, seed, made)
    with open_bench(realm) as bench:
        hits, found = gathered(walk(bench, case) for case in sample_of(sample, seed))
        return Report("relay", hits, found, negative_control(bench))


def run_lane(keys: str) -> Report:
    """Try all cases of a set of keys in a realm of its own, the first set with the negative control."""
    with realm_of_its_own() as realm, open_bench(realm) as bench:
        hits, violations = gathered(sweep(bench, keys))
        return Report("relay", hits, violations, negative_control(bench) if keys == next(iter(ROLES)) else 0)


def gathered(walks: Iterable[tuple[int, list[str]]]) -> tuple[int, tuple[str, ...]]:
    """Make all walks; how often a lie was told, and what was found."""
    hits, violations = 0, list[str]()
    for told_times, found in walks:
        hits += told_times
        violations += found
    return hits, tuple(violations)
