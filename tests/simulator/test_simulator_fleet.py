from __future__ import annotations

import json
import signal
import subprocess
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from hsmkm.dlms import security_setup
from hsmkm.dlms.association import Association
from hsmkm.dlms.security_setup import Attribute, KeyTransfer, attribute
from hsmkm.dlms.settings import AssociationSettings, public
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import InputError, TransportError
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.link.tcp import TcpLink
from hsmkm.simulator import state as state_file
from hsmkm.simulator.behaviour import Activation, Fault
from hsmkm.simulator.fate import Chances, Fates, Mishap
from hsmkm.simulator.fleet import MOST_METERS, Fleet, FleetSettings
from hsmkm.simulator.fleet_server import FleetServer
from hsmkm.simulator.keys import SoftwareCounter, SoftwareKeys, SoftwareReceiveCounter
from hsmkm.simulator.meter import ACTIVE_ENERGY
from hsmkm.simulator.server import beside
from hsmkm.simulator.state import MeterState
from hsmkm.simulator.tally import TWICE, TWO_AT_ONCE, Heard
from tests.realm import HSMKM

FIRST, CLIENT = SystemTitle.from_serial("MMM", 256), SystemTitle.parse("5554490000000001")
KEYS = {KeyId.GUEK: b"g" * 16, KeyId.GBEK: b"b" * 16, KeyId.GAK: b"a" * 16, KeyId.MASTER: b"m" * 16}
NEW_GUEK = b"G" * 16
MEMORY_OCTETS = 1200
"""What a meter that rests may take of memory, with what is counted of it: 120 MB for 100,000."""


def first() -> MeterState:
    return MeterState(FIRST, SecuritySuite.SUITE_0, dict(KEYS))


def fleet_of(chances: Chances | None = None, meters: int = 300) -> Fleet:
    return Fleet(first(), FleetSettings(meters, chances=chances or Chances()))


class Head:
    """A head end that talks to one meter of a fleet after the other."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counters: dict[int, SoftwareCounter] = {}

    def link(self, number: int, timeout: float = 30) -> TcpLink:
        return TcpLink(f"127.0.{number >> 8}.{number & 0xFF}", self.port, timeout)

    def client(self, link: TcpLink, number: int, guek: bytes = KEYS[KeyId.GUEK]) -> Client:
        counter = self.counters.setdefault(number, SoftwareCounter())
        settings = AssociationSettings(
            client_sap=1,
            server_sap=1,
            client_title=CLIENT,
            server_title=SystemTitle.from_serial("MMM", 255 + number),
            mechanism=Mechanism.HLS_GMAC,
            key=SoftwareKeys(guek, KEYS[KeyId.GAK]),
            counter=counter,
            receive_counter=SoftwareReceiveCounter(),
            challenge=b"0123456789abcdef",
        )
        return Client(link, Association(settings))

    def reads(self, number: int, guek: bytes = KEYS[KeyId.GUEK]) -> bool:
        with self.link(number) as link:
            client = self.client(link, number, guek)
            client.associate()
            value = client.get(ACTIVE_ENERGY).integer()
            client.release()
            return value == 123_456

    def transfers(self, number: int) -> None:
        wrapped = KeyTransfer(KeyId.GUEK, aes_key_wrap(KEYS[KeyId.MASTER], NEW_GUEK))
        with self.link(number) as link:
            client = self.client(link, number)
            client.associate()
            client.action(security_setup.key_transfer_method(), security_setup.encode_key_transfer([wrapped]))


@contextmanager
def heads(fleet: Fleet) -> Iterator[Head]:
    with beside(FleetServer(fleet)) as (port,):
        yield Head(port)


def test_each_address_of_the_loopback_is_a_meter_with_a_title_of_its_own() -> None:
    with heads(fleet_of()) as head:
        for number in (1, 2, 255, 256, 300):
            with head.link(number) as link:
                client = Client(link, Association(public(SystemTitle.from_serial("MMM", 255 + number))))
                client.associate()
                title = client.get(attribute(Attribute.SERVER_SYSTEM_TITLE)).octets()
            assert title == SystemTitle.from_serial("MMM", 255 + number).octets
            assert head.reads(number)


@pytest.mark.parametrize("number", [0, 301])
def test_an_address_without_a_meter_is_closed(number: int) -> None:
    with heads(fleet_of()) as head, pytest.raises(TransportError):
        head.reads(number)


def test_new_keys_are_one_meters_own_and_stay_when_nobody_is_connected() -> None:
    with heads(fleet_of()) as head:
        head.transfers(7)
        assert head.reads(7, NEW_GUEK)
        assert head.reads(8)
        with pytest.raises(MeterRefusedError):
            head.reads(7)


def test_the_same_seed_gives_a_meter_the_same_fate_at_the_same_exchange() -> None:
    chances = Chances(0.2, 0.1, 0.1, 0.3, (0.0, 1.0))
    places = [(meter, count) for meter in range(1, 40) for count in range(40)]
    one, other = Fates(5, chances), Fates(5, chances)
    fates = {place: one.exchange(*place) for place in places}
    assert fates == {place: other.exchange(*place) for place in reversed(places)}
    assert [one.new_key(*place) for place in places] == [other.new_key(*place) for place in places]
    assert fates != {place: Fates(6, chances).exchange(*place) for place in places}


def test_fates_come_as_often_as_the_chances_say() -> None:
    fates = Fates(1, Chances(0.2, 0.1, 0.05, 0.5, (0.01, 0.02)))
    many = [fates.exchange(meter, count) for meter in range(100) for count in range(100)]
    found = {mishap: sum(fate.mishap is mishap for fate in many) / len(many) for mishap in Mishap}
    expected = {Mishap.REQUEST_LOST: 0.1, Mishap.ANSWER_LOST: 0.1, Mishap.SILENCE: 0.1, Mishap.REBOOT: 0.05}
    assert found == pytest.approx(expected, abs=0.02)
    assert all(0.01 <= fate.delay <= 0.02 for fate in many)
    faults = [fates.new_key(meter, 0) for meter in range(1000)]
    assert set(faults) == {None, *Fault}
    characters = {fates.character(meter) for meter in range(100)}
    assert characters == {(activate, reset) for activate in Activation for reset in (False, True)}


@pytest.mark.parametrize("chances", [{"loss": 0.6, "silence": 0.5}, {"fault": -0.1}, {"delay": (2.0, 1.0)}])
def test_what_is_no_chance_is_refused(chances: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Chances(**chances)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chances", "mishap"),
    [
        (Chances(loss=1.0), None),
        (Chances(reboot=1.0), Mishap.REBOOT),
    ],
)
def test_what_befalls_an_exchange_ends_the_connection_and_is_told(chances: Chances, mishap: Mishap | None) -> None:
    fleet = fleet_of(chances)
    with heads(fleet) as head, pytest.raises(TransportError, match="closed"):
        head.reads(3)
    totals, meter = map(json.loads, fleet.report())
    assert totals["met"] == totals["connections"] == 1
    assert meter["meter"] == str(SystemTitle.from_serial("MMM", 258))
    assert set(meter) <= {"meter", "number", *Mishap}
    assert mishap is None or meter[mishap] == 1


def test_silence_leaves_the_connection_open() -> None:
    fleet = fleet_of(Chances(silence=1.0))
    with heads(fleet) as head, head.link(3, timeout=1.0) as link, pytest.raises(TransportError, match="no answer"):
        head.client(link, 3).associate()
    assert fleet.tally.totals[Mishap.SILENCE] == 1


def test_an_answer_is_late_by_the_delay() -> None:
    late = fleet_of(Chances(delay=(60.0, 60.0)))
    with heads(late) as head, head.link(3, timeout=1.0) as link, pytest.raises(TransportError, match="no answer"):
        head.client(link, 3).associate()
    with heads(fleet_of(Chances(delay=(0.01, 0.02)))) as head:
        assert head.reads(3)


def test_a_reboot_ends_every_association_with_the_meter_and_restarts_its_counters_if_it_is_of_that_kind() -> None:
    fleet = Fleet(first(), FleetSettings(3, chances=Chances(), reset_at_reboot=True))
    with heads(fleet) as head, head.link(2) as link:
        head.client(link, 2).associate()
        (device,) = fleet._active.values()
        assert device.meter.state.rx_ic > 1
        fleet.reboot(device)
        assert (device.meter.state.tx_ic, device.meter.state.rx_ic) == (1, 0)
        assert not fleet._active


def test_a_counter_that_comes_twice_under_one_key_is_counted() -> None:
    fleet = fleet_of()
    with heads(fleet) as head:
        assert head.reads(5)
        assert fleet.tally.totals[TWICE] == 0
        head.counters[5] = SoftwareCounter()
        with pytest.raises(MeterRefusedError):
            head.reads(5)
        assert fleet.tally.totals[TWICE] == 1
        assert fleet.tally.by_meter == {5: {TWICE: 1}}


def test_two_associations_of_one_client_at_once_are_counted_unless_one_has_hung_up() -> None:
    fleet = fleet_of()
    with heads(fleet) as head:
        with head.link(5) as link:
            head.client(link, 5).associate()
        with head.link(5) as link, head.link(6) as another:
            head.client(link, 5).associate()
            head.client(another, 6).associate()
            assert fleet.tally.totals[TWO_AT_ONCE] == 0
            with head.link(5) as second:
                head.client(second, 5).associate()
        assert fleet.tally.totals[TWO_AT_ONCE] == 1


def test_runs_of_counters_are_told_apart_by_their_key() -> None:
    heard = Heard()
    assert all(heard.is_new(b"one", counter) for counter in (4, 3, 5, 9, 8))
    assert heard.is_new(b"two", 4)
    again = Heard(heard.packed())
    assert [again.is_new(b"one", counter) for counter in (3, 4, 5, 6, 7, 8, 9)] == [False] * 3 + [True] * 2 + [
        False
    ] * 2
    with pytest.raises(ValueError, match="cut off"):
        Heard(b"octets")


class Quiet:
    """A connection on which nothing is said."""

    client = 1
    is_open = False

    def cut(self) -> None:
        """Nothing is open."""


def test_a_meter_that_rests_takes_little_memory() -> None:
    fleet = fleet_of(meters=MOST_METERS)
    visits = range(1, 3001)
    tracemalloc.start()
    try:
        for number in visits:
            line = Quiet()
            device = fleet.enter(number, line)
            device.meter.state.tx_ic = device.meter.state.rx_ic = number
            device.meter.activate({key_id: bytes(16) for key_id in KeyId})
            for run in range(10):
                device.heard.is_new(KEYS[KeyId.GUEK], 10 * run)
            fleet.leave(device, line)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / len(visits) < MEMORY_OCTETS


def test_a_fleet_goes_on_from_its_states() -> None:
    before = fleet_of()
    with heads(before) as head:
        head.transfers(7)
        counters = head.counters
    after = fleet_of()
    after.take_up(before.states())
    with heads(after) as head:
        head.counters = counters
        assert head.reads(7, NEW_GUEK)
    assert after.fate(7) == before.fate(7)


@pytest.mark.parametrize("line", ["", "[]", '["4D4D4D0000000001",0,0,"",{}]', '["4D4D4D0000000101",0,0,"00",{}]', "{}"])
def test_states_of_another_fleet_are_refused_by_their_line(line: str) -> None:
    with pytest.raises(InputError, match="line 1"):
        fleet_of().take_up(iter([line]))


def test_a_fleet_that_its_addresses_or_titles_do_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="addresses"):
        FleetSettings(MOST_METERS + 1)
    last = replace(first(), system_title=SystemTitle.parse("4D4D4DFFFFFFFFFF"))
    with pytest.raises(InputError, match="count up"):
        Fleet(last, FleetSettings(2))


def test_the_command_serves_a_fleet_and_tells_what_befell_it(tmp_path: Path) -> None:
    path, places, report, states = (tmp_path / name for name in ("first.json", "places", "report", "states"))
    state_file.save_to(path)(first())
    command = [str(HSMKM), "simulate", "fleet", str(path), "--meters", "3000", "--delay", "0", "1"]
    command += ["--places", str(places), "--report", str(report), "--states", str(states)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready, port = process.stdout.readline().split()
        assert ready == "READY"
        head = Head(int(port))
        assert head.reads(2000)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    address = IPv4Address("127.0.0.0") + 2000
    assert places.read_text().splitlines()[1999] == f"{SystemTitle.from_serial('MMM', 2255)},{address}:{port}"
    (totals,) = map(json.loads, report.read_text().splitlines())
    assert totals["meters"] == 3000
    assert totals["met"] == 1
    assert totals["exchanges"] > 3
    assert json.loads(states.read_text())[0] == str(SystemTitle.from_serial("MMM", 2255))
    assert states.stat().st_mode & 0o077 == 0
