"""Independent meters that fail at key_transfer, once or twice in a row: each must end with what the store calls active.

The whole table: five faults, three activations, a counter that goes on or restarts with a new GUEK, and five sets of
keys; then every pair of faults; then what `resolve` records as true where it is to send no new keys.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import product
from unittest.mock import patch

from hsmkm.errors import HsmkmError, PartlyDoneError
from hsmkm.steps import renew, resolve
from hsmkm.steps.communicate import associated
from hsmkm.steps.credentials import Pair
from hsmkm.steps.renew import ALL_KEYS, GLOBAL_KEYS, Work
from hsmkm.steps.resolve import Truth
from hsmkm.store import key_sets
from hsmkm.store.renewals import RenewalState
from hsmkm.token.types import KeyRole, MeterRole
from tests.faults.meter_bench import (
    ATTEMPTS_PER_DAY,
    LARGEST_STEP,
    ROUNDS,
    Bench,
    Subject,
    open_bench,
    realm_of_its_own,
)
from tests.faults.report import Report
from tests.interop.package_opener import Keys
from tests.realm import Realm

ACTIVATIONS = ("now", "after-response", "release")
FAULTS = ("reject", "drop-before", "drop-after", "lie", "first-only")
NONE = "-"
GBEK = "gbek"


@dataclass(frozen=True, slots=True)
class KeysChanged:
    """The keys of a renewal, and the transfers that pass before the first fault."""

    roles: tuple[MeterRole, ...]
    before: tuple[str, ...] = ()


KEYS = {
    "guek": KeysChanged((KeyRole.GUEK,)),
    "gak": KeysChanged((KeyRole.GAK,)),
    "guek+gak+gbek": KeysChanged(GLOBAL_KEYS),
    "master": KeysChanged((KeyRole.MASTER,)),
    "master after globals": KeysChanged(ALL_KEYS, (NONE,)),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the table."""

    keys: str
    faults: tuple[str, ...]
    activate: str
    ic_reset: bool
    go_on: bool = True

    def __str__(self) -> str:
        counter = "counter restarts" if self.ic_reset else "counter goes on"
        only = "" if self.go_on else ", only recorded"
        return f"{self.keys}, {' then '.join(self.faults)}, keys effective {self.activate}, {counter}{only}"


ALSO_RECORDED = KEYS | {GBEK: KeysChanged((KeyRole.GBEK,))}


def table() -> list[Case]:
    """List every cell with one fault."""
    return [
        Case(keys, (fault,), activate, ic_reset)
        for keys, fault, activate, ic_reset in product(KEYS, FAULTS, ACTIVATIONS, (False, True))
    ]


def doubles() -> list[Case]:
    """List every pair of faults for every set of keys; the ways to behave take turns."""
    behaviours = list(product(ACTIVATIONS, (False, True)))
    pairs = list(product(KEYS, product(FAULTS, FAULTS)))
    return [Case(keys, faults, *behaviours[at % len(behaviours)]) for at, (keys, faults) in enumerate(pairs)]


def recorded() -> list[Case]:
    """List what is only recorded; of a GBEK alone no association tells whether the meter took it."""
    cases = [Case(keys, (fault,), "after-response", False, go_on=False) for keys, fault in product(KEYS, FAULTS)]
    return [*cases, *(Case(GBEK, (fault,), "release", False, go_on=False) for fault in FAULTS[:3])]


def walk(bench: Bench, case: Case) -> tuple[int, list[str]]:
    """Renew a meter that fails, resolve until it is settled, and say how many faults hit and what does not hold."""
    subject, keys = bench.subject(), ALSO_RECORDED[case.keys]
    before, counter, attempts = bench.fleet.keys(subject.port), bench.counter(subject), bench.attempts(subject)
    bench.fleet.set(subject.port, case.activate, ic_reset=case.ic_reset, faults=(*keys.before, *case.faults))
    found = _settled(bench, subject, keys.roles, go_on=case.go_on) or bench.untrue(subject)
    told = bench.fleet.tell(subject.port)
    if not found and case.go_on:
        asked = {role.value for role in keys.roles} | ({GBEK} if KeyRole.MASTER in keys.roles else set())
        found = _not_as_asked(asked - bench.unproved(subject), before, bench.fleet.keys(subject.port))
    if not found and bench.counter(subject) > counter + LARGEST_STEP:
        found.append(f"our counter went from {counter} to {bench.counter(subject)}")
    if told["repeated_gueks"]:
        found.append("a GUEK was sent twice")
    if (spent := bench.attempts(subject) - attempts) > ATTEMPTS_PER_DAY:
        found.append(f"{spent} attempts on a meter in doubt")
    if found or bench.unproved(subject):
        bench.spoil()
    return told["hits"], [f"{case}: {text}" for text in found]


def _settled(bench: Bench, subject: Subject, roles: tuple[MeterRole, ...], *, go_on: bool) -> list[str]:
    """Renew, and resolve until nothing is in doubt; every failure on the way must say so."""
    outcome = bench.renewed(subject, roles)
    for _ in range(ROUNDS):
        if outcome.error is None:
            return []
        if not isinstance(outcome.error, PartlyDoneError):
            return [f"it ended as {outcome.state}: {outcome.error.message}"]
        outcome = bench.resolved(subject, go_on=go_on)
    return [] if outcome.error is None else [f"not settled after {ROUNDS} rounds: {outcome.detail}"]


def _not_as_asked(asked: set[str], before: Keys, held: Keys) -> list[str]:
    """Say which keys a meter still has that were to be renewed, and which it has not that were to stay."""
    found = [f"{role} is the one from before" for role in sorted(asked) if held[role] == before[role]]
    others = sorted(set(held) - asked - {GBEK})
    return found + [f"{role} changed too" for role in others if held[role] != before[role]]


@contextmanager
def resolve_believes() -> Iterator[None]:
    """Break `resolve`: it takes for granted that the meter has the fresh keys."""

    def believed(work: Work) -> Truth:
        return Truth(dict.fromkeys(ALL_KEYS, work.fresh))

    with patch.object(resolve, "_find_truth", believed):
        yield


@contextmanager
def renew_believes() -> Iterator[None]:
    """Break `renew`: a meter that says yes is taken at its word."""

    def believed(work: Work) -> None:
        for stage in work.stages[:1]:
            with associated(work.speaking, Pair.of(work.current)) as client:
                renew._send(work, client, stage)
        with work.party.store.begin("renewal-verified", work.title, {}) as tx:
            work.advance(tx, RenewalState.VERIFIED)

    with patch.object(renew, "_run_stages", believed):
        yield


@contextmanager
def renew_drops() -> Iterator[None]:
    """Break `renew`: keys that a meter did not say yes to are thrown away."""

    def dropped(work: Work, error: HsmkmError) -> None:
        with work.party.store.begin("renewal-abandon", work.title, {}) as tx:
            work.advance(tx, RenewalState.UNKNOWN)
            work.advance(tx, RenewalState.ABANDONED)
            renew.close_intents(tx, work.speaking.meter.system_title)
            key_sets.destroy(tx, work.fresh.ref)
        raise PartlyDoneError(error.message)

    with patch.object(renew, "_leave", dropped):
        yield


BROKEN: dict[Callable[[], AbstractContextManager[None]], Case] = {
    resolve_believes: Case("guek+gak+gbek", ("reject",), "now", ic_reset=False),
    renew_believes: Case("guek", ("lie",), "after-response", ic_reset=False),
    renew_drops: Case("gak", ("drop-after",), "release", ic_reset=False),
}


def negative_control(bench: Bench) -> int:
    """Count what is found in the broken variants; 0 where one of them is not found out."""
    counts = []
    for variant, case in BROKEN.items():
        with variant():
            counts.append(len(walk(bench, case)[1]))
    return sum(counts) if all(counts) else 0


def chosen(sample: int | None, seed: int) -> Sequence[Case]:
    """Choose cases by chance, or take all."""
    cases = table() + doubles() + recorded()
    if sample is None or sample >= len(cases):
        return cases
    return random.Random(seed).sample(cases, sample)  # noqa: S311 - which cases are tried is no secret


def run(sample: int | None, seed: int, realm: Realm | None = None) -> Report:
    """Try all cases, or a sample; in a realm that is given, or in one of its own."""
    if realm is None:
        with realm_of_its_own() as made:
            return run(sample, seed, made)
    hits, violations = 0, []
    with open_bench(realm) as bench:
        for case in chosen(sample, seed):
            hit, found = walk(bench, case)
            hits += hit
            violations += found
        return Report("meters", hits, tuple(violations), negative_control(bench))
