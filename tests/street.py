"""A few meters that a party speaks with directly, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import load, save_to
from hsmkm.steps.communicate import find_meter
from hsmkm.steps.party import Party
from hsmkm.steps.register_party import PartyPlan, register_party
from hsmkm.steps.renew import GLOBAL_KEYS
from hsmkm.steps.setup import make_token, write_home
from hsmkm.store import check, meters, urgent
from hsmkm.store.meter import MeterState
from hsmkm.token.session import SOFTHSM
from hsmkm.token.types import MeterRole
from tests.field import state_path
from tests.realm import ACTOR, Realm, certify_home, title_of

SERIALS = (1, 2)
ONE, OTHER = (title_of(serial) for serial in SERIALS)
NEWCOMER = "4F574E4500000007"
"""The system title of the second utility."""


def add_newcomer(realm: Realm) -> None:
    """Make a second utility, which knows the first one and is known to it."""
    make_token(write_home(realm.home("newcomer"), "newcomer", "utility", NEWCOMER, (), SOFTHSM), ACTOR)
    certify_home(realm, "newcomer")
    for name, other in (("utility", "newcomer"), ("newcomer", "utility")):
        with realm.open(name) as party:
            register_party(party, PartyPlan(other, "utility", (), "", "", realm.folder / "certificates" / other))


@dataclass
class Street:
    """A party that speaks with its meters directly."""

    party: Party
    stack: ExitStack
    realm: Realm
    meters: dict[str, Meter] = field(default_factory=dict)

    def serve(self, title: str, meter: Meter) -> None:
        (port,) = self.stack.enter_context(serving([meter]))
        self.meters[title] = meter
        self.moves(title, f"127.0.0.1:{port}")

    def moves(self, title: str, address: str) -> None:
        with self.party.store.begin("moved", title, {}) as tx:
            meters.update(tx, replace(meters.find(tx, title), address=address))

    def rests(self, title: str, state: MeterState = MeterState.SUSPENDED) -> None:
        with self.party.store.begin("rests", title, {}) as tx:
            meters.update(tx, replace(meters.find(tx, title), state=state.value))

    def fails_once(self, title: str, fault: Fault) -> None:
        self.serve(title, Meter(self.meters[title].state, MeterSettings(fault=fault, fault_count=1)))

    def ask(self, title: str, *roles: MeterRole) -> None:
        system_title = find_meter(self.party, title).system_title
        with self.party.store.begin("ask", title, {}) as tx:
            urgent.queue(tx, system_title, 0, 1, "somebody knows them", roles or GLOBAL_KEYS)

    def waiting(self) -> list[str]:
        with self.party.store.read() as tx:
            return [item.title for item in urgent.waiting(tx)]


@contextmanager
def open_street(realm: Realm, name: str = "factory", serials: Sequence[int] = SERIALS) -> Iterator[Street]:
    """Let a party speak with its meters; its store must be in order at the end."""
    with ExitStack() as stack:
        found = Street(stack.enter_context(realm.open(name)), stack, realm)
        for serial in serials:
            path = state_path(realm, serial)
            found.serve(title_of(serial), Meter(load(path), save=save_to(path)))
        yield found
        with found.party.store.read() as tx:
            assert list(check.check(tx)) == []
