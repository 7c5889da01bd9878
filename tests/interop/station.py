"""A factory that injects, renews and resolves one independent meter, and the proof that both hold the same keys."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hsmkm.dlms.association import Association
from hsmkm.dlms.security_setup import invocation_counter
from hsmkm.dlms.settings import AssociationSettings, public
from hsmkm.dlms.types import AttributeRef, LogicalName, Mechanism, SecuritySuite, SystemTitle
from hsmkm.link.client import Client
from hsmkm.link.tcp import TcpLink
from hsmkm.packages.content import Purpose
from hsmkm.packages.send import outgoing
from hsmkm.simulator.keys import SoftwareCounter, SoftwareKeys, SoftwareReceiveCounter
from hsmkm.steps.communicate import find_meter, read
from hsmkm.steps.deliver import send
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.store import key_sets, meters, renewals
from hsmkm.store.key_set import KeyState
from tests.interop.package_opener import NAME as OPENER
from tests.interop.package_opener import Keys, PackageOpener
from tests.realm import Realm, title_of

if TYPE_CHECKING:
    from collections.abc import Iterator

StartMeter = Callable[..., int]

SERIALS = (1, 2)
NEW, INJECTED = title_of(1), title_of(2)
REGISTER = AttributeRef(3, LogicalName.parse("1.0.1.8.0.255"), 2)
READING = 123_456
KEY_NUMBERS = {"guek": "0", "gbek": "1", "gak": "2", "master": "3"}
STRANGER = SystemTitle.parse("5354520000000001")


@dataclass(frozen=True)
class Station:
    """A realm with an opener and two provisioned meters; state files named after the meters' titles."""

    realm: Realm
    start_meter: StartMeter
    suite: int = 0

    @property
    def folder(self) -> Path:
        return self.realm.folder

    def state_file(self, title: str) -> Path:
        return self.folder / f"meter-{title}.json"

    def start(self, title: str, *options: str) -> int:
        """Start a meter with the model's initial keys, or with what its state file says, and give its port."""
        keys = self.realm.initial_keys(self.suite)
        names = {"guek": "--guek", "gbek": "--gbek", "gak": "--gak", "master": "--kek"}
        initial = [text for role, name in names.items() for text in (name, keys[role].hex())]
        known = ("--system-title", title, "--suite", str(self.suite), "--state", str(self.state_file(title)))
        return self.start_meter(*known, *initial, *options)

    def meter_keys(self, title: str) -> Keys:
        """Read what the meter holds from its state file."""
        found = json.loads(self.state_file(title).read_text())["keys"]
        return {role: bytes.fromhex(found[number]) for role, number in KEY_NUMBERS.items()}

    def store_keys(self, party: Party, title: str) -> Keys:
        """Open what the store calls the keys in force, from a package that the party makes of them."""
        return PackageOpener.of(self.realm).keys_in_force(party, title)

    def agrees(self, party: Party, title: str) -> None:
        """Check that a verified read works, nothing is open, and that store and meter hold the same four keys."""
        assert [item.data.integer() for item in read(party, title, (REGISTER,))] == [READING]
        with party.store.read() as tx:
            assert not renewals.unfinished(tx, bytes.fromhex(title))
        assert self.store_keys(party, title) == self.meter_keys(title)

    def renewal_states(self, party: Party, title: str) -> list[str]:
        """Name the states of the meter's renewals, oldest first."""
        with party.store.read() as tx:
            return [item.state.value for item in renewals.listing(tx, bytes.fromhex(title))]

    def key_states(self, party: Party, title: str) -> list[str]:
        """Name the states of the meter's generations, oldest first."""
        with party.store.read() as tx:
            return [state.value for _, state in key_sets.for_meter(tx, bytes.fromhex(title))]

    def sent_guek(self, party: Party, title: str, generation: int) -> bytes:
        """Open the GUEK of one generation, whatever its state, from a package made for this."""
        with party.store.read() as tx:
            held = {item.ref.generation: item for item, _ in key_sets.for_meter(tx, bytes.fromhex(title))}
        meter = find_meter(party, title)
        content = [outgoing(meter, held[generation], KeyState.PRE_ACTIVE)]
        return PackageOpener.of(self.realm).open(send(party, Purpose.DELIVERY, OPENER, content).path)[title]["guek"]

    def moved(self, party: Party, title: str, port: int) -> None:
        """Have the factory find the meter at another port."""
        with party.store.begin("meter-address", title, {}) as tx:
            meter = meters.require(tx, bytes.fromhex(title))
            meters.update(tx, replace(meter, address=f"127.0.0.1:{port}"))


def build_station(realm: Realm, start_meter: StartMeter, suite: int = 0) -> Station:
    """Let an opener join, provision two meters of a suite and inject the second."""
    station = Station(realm, start_meter, suite)
    PackageOpener.join(realm)
    port = station.start(INJECTED)
    with realm.open("factory") as party:
        provision(party, realm.order(*SERIALS, suite=suite), "line")
        inject(party, INJECTED, f"127.0.0.1:{port}")
    return station


@contextmanager
def stranger(port: int, title: str, keys: Keys, suite: int = 0) -> Iterator[Client]:
    """Associate as a client that is not hsmkm's, with keys in memory."""
    with TcpLink("127.0.0.1", port, 20) as link:
        client = Client(link, Association(public()))
        client.associate()
        told = client.get(invocation_counter()).integer()
        client.release()
    counter = SoftwareCounter()
    counter.value = told + 1
    settings = AssociationSettings(
        client_sap=1,
        server_sap=1,
        client_title=STRANGER,
        server_title=SystemTitle.parse(title),
        mechanism=Mechanism.HLS_GMAC,
        suite=SecuritySuite(suite),
        key=SoftwareKeys(keys["guek"], keys["gak"]),
        counter=counter,
        receive_counter=SoftwareReceiveCounter(),
        challenge=secrets.token_bytes(16),
    )
    with TcpLink("127.0.0.1", port, 20) as link:
        client = Client(link, Association(settings))
        client.associate()
        yield client
        client.release()
