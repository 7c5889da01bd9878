"""Virtual meters of every suite that fail: keys in one array and key by key, key_agreement, and two associations.

What the independent meter of `harness_meters` cannot do is tried here: suites 1 and 2 with their certificates, meters
that take one key a transfer, agreement under either AlgorithmID, and one association in doubt beside another.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

from hsmkm.dlms.agreement import GBCS_PREFIX, AlgorithmIds
from hsmkm.dlms.types import Mechanism
from hsmkm.errors import HsmkmError, PartlyDoneError
from hsmkm.simulator.behaviour import Activation, Fault, MeterSettings
from hsmkm.steps import agree, renew, resolve
from hsmkm.steps.communicate import read
from hsmkm.steps.inject import inject_many
from hsmkm.steps.party import Party
from hsmkm.steps.renew import ALL_KEYS, GLOBAL_KEYS, Work
from hsmkm.steps.results import Outcome
from hsmkm.store import key_sets, renewals
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.token.types import KeyRole, MeterRole
from tests.associations import TwoClients, two_clients
from tests.faults.harness_meters import resolve_believes
from tests.faults.meter_bench import ROUNDS, many_attempts
from tests.faults.report import Report
from tests.interop.package_opener import PackageOpener
from tests.interop.station import READING, REGISTER
from tests.mechanisms import TITLE, Line, moved, set_up
from tests.realm import Realm, build_realm, copy_realm

ROLES: tuple[tuple[MeterRole, ...], ...] = ((KeyRole.GUEK,), (KeyRole.GAK,), GLOBAL_KEYS, (KeyRole.MASTER,), ALL_KEYS)
AGREED: tuple[MeterRole, ...] = ()
"""In place of roles: the GUEK is agreed on."""

KEY_BY_KEY = '[key_transfer]\narray = false\norder = ["gak", "guek", "gbek"]\n'
WAY_BACK = "[key_agreement]\nway_back = true\n"
BOTH = ("management", "reading")
SEVERAL = 2
"""So many keys in one transfer, and a meter may take only the first of them."""


@dataclass(frozen=True, slots=True)
class Case:
    """A fault of one kind of meter, in so many transfers, and what is renewed; no roles stand for an agreement."""

    meter: str
    roles: tuple[MeterRole, ...]
    fault: Fault
    count: int
    activate: Activation
    ic_reset: bool

    def settings(self) -> MeterSettings:
        """Say how the meter behaves; one that agrees uses the other AlgorithmID where its counter restarts."""
        ids = AlgorithmIds(GBCS_PREFIX) if self.ic_reset else AlgorithmIds()
        return MeterSettings(self.activate, self.ic_reset, self.fault, self.count, algorithms=ids)

    def __str__(self) -> str:
        what = "+".join(self.roles) or "agreement"
        counter = "counter restarts" if self.ic_reset else "counter goes on"
        return f"{self.meter}, {what}, {self.count}x {self.fault}, keys effective {self.activate}, {counter}"


class Kind(Protocol):
    """One kind of meter: how it is made, and what is done with it."""

    @property
    def choices(self) -> Sequence[tuple[MeterRole, ...]]:
        """What may be renewed of it."""
        ...

    def make(self, realm: Realm) -> Line | TwoClients:
        """Give the meter, not injected yet."""
        ...

    def begin(self, party: Party, roles: tuple[MeterRole, ...]) -> list[Outcome]:
        """Renew."""
        ...


@dataclass(frozen=True, slots=True)
class OneLine:
    """A meter of one association."""

    suite: int
    extra: str = ""
    choices: Sequence[tuple[MeterRole, ...]] = ROLES

    def make(self, realm: Realm) -> Line:
        line = set_up(realm, 5, self.suite, self.extra)
        if self.suite:
            line.state.mechanisms |= {Mechanism.HLS_ECDSA}
        return line

    def begin(self, party: Party, roles: tuple[MeterRole, ...]) -> list[Outcome]:
        return renew.renew(party, [TITLE], roles) if roles else agree.renew_by_agreement(party, [TITLE])


@dataclass(frozen=True, slots=True)
class TwoLines:
    """A meter of two associations, both of which are renewed: the second while the first may be in doubt."""

    choices: Sequence[tuple[MeterRole, ...]] = (GLOBAL_KEYS, ALL_KEYS)

    def make(self, realm: Realm) -> TwoClients:
        return two_clients(realm)

    def begin(self, party: Party, roles: tuple[MeterRole, ...]) -> list[Outcome]:
        return [outcome for name in BOTH for outcome in renew.renew(party, [TITLE], roles, name)]


KINDS: dict[str, Kind] = {
    "suite 0 key by key": OneLine(0, KEY_BY_KEY),
    "suite 1": OneLine(1, WAY_BACK, (*ROLES, AGREED)),
    "suite 2": OneLine(2, WAY_BACK, (*ROLES, AGREED)),
    "suite 2 key by key": OneLine(2, KEY_BY_KEY),
    "two associations": TwoLines(),
}


def cases() -> list[Case]:
    """List all; the ways to behave take turns, and so do one fault and two in a row."""
    behaviours = cycle(list(product((1, 2), Activation, (False, True))))
    found = []
    for name, kind in KINDS.items():
        for roles, fault, _ in product(kind.choices, Fault, range(2)):
            alone = len(roles) < SEVERAL or name.endswith("key by key")
            if not (fault is Fault.FIRST_ONLY and alone):
                found.append(Case(name, roles, fault, *next(behaviours)))
    return found


@dataclass(frozen=True, slots=True)
class Scene:
    """A factory with one injected meter of a kind."""

    realm: Realm
    party: Party
    kind: Kind
    made: Line | TwoClients

    def walk(self, case: Case) -> list[str]:
        """Renew and resolve until nothing is in doubt, and say what is not as the store says."""
        with self.made.meter(case.settings()) as address:
            moved(self.party, address)
            outcomes = self.kind.begin(self.party, case.roles)
            for _ in range(ROUNDS):
                errors = [item.error for item in outcomes if item.error is not None]
                if not errors:
                    break
                if wrong := [error.message for error in errors if not isinstance(error, PartlyDoneError)]:
                    return [f"{case}: {text}" for text in wrong]
                outcomes = resolve.resolve_all(self.party, TITLE)
            else:
                return [f"{case}: not settled after {ROUNDS} rounds: {outcomes[0].detail}"]
            return [f"{case}: {text}" for text in self._untrue(case)]

    def _untrue(self, case: Case) -> list[str]:
        with self.party.store.read() as tx:
            open_ones = renewals.unfinished(tx, bytes.fromhex(TITLE))
            states = [state for _, state in key_sets.for_meter(tx, bytes.fromhex(TITLE))]
        two = isinstance(self.made, TwoClients)
        found = [f"renewal {item.id} is {item.state}" for item in open_ones]
        if states.count(KeyState.ACTIVE) != 1 + two:
            found.append(f"{states.count(KeyState.ACTIVE)} generations are active")
        if found:
            return found
        if isinstance(self.made, Line):
            found += self._other_keys(self.made, case)
        return found + [text for name in (BOTH if two else ("",)) for text in self._unreadable(name)]

    def _other_keys(self, line: Line, case: Case) -> list[str]:
        held = {key_id.name.lower(): value for key_id, value in line.state.keys.items()}
        meant = PackageOpener.of(self.realm).keys_in_force(self.party, TITLE)
        sent = {KeyRole.GBEK, KeyRole.MASTER} & set(case.roles) and case.fault not in (Fault.LIE, Fault.FIRST_ONLY)
        wrong = [role for role in held if held[role] != meant[role] and (role != KeyRole.GBEK or sent)]
        return [f"the meter holds another {role} than the store calls active" for role in wrong]

    def _unreadable(self, association: str) -> list[str]:
        try:
            (item,) = read(self.party, TITLE, (REGISTER,), association)
        except HsmkmError as error:
            return [f"it is not read under the keys that the store calls active: {error.message}"]
        return [] if item.data.integer() == READING else ["it reads another value"]


@contextmanager
def scene(template: Realm, kind: Kind, folder: Path) -> Iterator[Scene]:
    """Inject a meter of a kind in a copy of the realm."""
    realm = copy_realm(template, folder)
    PackageOpener.join(realm)
    made = kind.make(realm)
    with many_attempts(), realm.open("factory") as party:
        with made.meter() as address:
            outcomes = inject_many(party, [(TITLE, address)])
            assert all(item.error is None for item in outcomes), outcomes
        yield Scene(realm, party, kind, made)


@contextmanager
def agreement_believes() -> Iterator[None]:
    """Break the agreement: the first key that was derived is taken for the meter's."""

    def believed(_work: Work, candidates: Sequence[KeySet], *_rest: object) -> KeySet:
        return candidates[0]

    with patch.object(agree, "first_that_associates", believed):
        yield


BROKEN: dict[str, tuple[Callable[..., object], Case]] = {
    "suite 1": (agreement_believes, Case("suite 1", AGREED, Fault.FIRST_ONLY, 0, Activation.NOW, ic_reset=True)),
    "suite 2": (resolve_believes, Case("suite 2", GLOBAL_KEYS, Fault.REJECT, 1, Activation.NOW, ic_reset=False)),
}


def run(sample: int | None, seed: int, template: Realm | None = None) -> Report:
    """Try all cases, or a sample of the kinds and of each of them; in copies of a realm that is given or its own."""
    chosen = cases()
    if sample is not None and sample < len(chosen):
        chosen = random.Random(seed).sample(chosen, sample)  # noqa: S311 - which cases are tried is no secret
    with tempfile.TemporaryDirectory(prefix="hsmkm-virtual-") as folder:
        base = Path(folder)
        realm = template or build_realm(base / "template")
        violations, counts = [], []
        for number, (name, kind) in enumerate(KINDS.items()):
            own = [case for case in chosen if case.meter == name]
            if not own and name not in BROKEN:
                continue
            with scene(realm, kind, base / str(number)) as made:
                for case in own:
                    violations += made.walk(case)
                if name in BROKEN:
                    counts.append(_found_in(made, name))
        return Report("virtual", len(chosen), tuple(violations), sum(counts) if all(counts) else 0)


def _found_in(made: Scene, name: str) -> int:
    variant, case = BROKEN[name]
    with variant():  # type: ignore[attr-defined]
        return len(made.walk(case))
