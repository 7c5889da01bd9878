from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import security_setup
from hsmkm.dlms.association import Association
from hsmkm.dlms.security_setup import KeyTransfer
from hsmkm.dlms.settings import AssociationSettings, public
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import InputError, IntegrityError, RefusedError, TransportError
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.link.tcp import TcpLink
from hsmkm.simulator import state as state_file
from hsmkm.simulator.behaviour import Activation, DroppedError, Fault, MeterSettings
from hsmkm.simulator.keys import SoftwareCounter, SoftwareKeys, SoftwareReceiveCounter
from hsmkm.simulator.meter import ACTIVE_ENERGY, Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.session import Session
from hsmkm.simulator.state import MeterState

METER, CLIENT = SystemTitle.parse("4D4D4D0000BC614E"), SystemTitle.parse("4D4D4D0000000001")
OLD = {KeyId.GUEK: b"g" * 16, KeyId.GBEK: b"b" * 16, KeyId.GAK: b"a" * 16, KeyId.MASTER: b"m" * 16}
NEW_GUEK, NEW_GAK = b"G" * 16, b"A" * 16
BOTH = {KeyId.GUEK: NEW_GUEK, KeyId.GAK: NEW_GAK}


def fresh(suite: SecuritySuite = SecuritySuite.SUITE_0) -> MeterState:
    keys = {key_id: (key * 2)[: suite.key_octets] for key_id, key in OLD.items()}
    return MeterState(METER, suite, keys)


class Head:
    """A head end that talks to one meter over TCP."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counter = SoftwareCounter()
        self.received = SoftwareReceiveCounter()

    @contextmanager
    def associated(self, guek: bytes, gak: bytes, *, suite: SecuritySuite = SecuritySuite.SUITE_0) -> Iterator[Client]:
        settings = AssociationSettings(
            client_sap=1,
            server_sap=1,
            client_title=CLIENT,
            server_title=METER,
            mechanism=Mechanism.HLS_GMAC,
            suite=suite,
            key=SoftwareKeys(guek, gak),
            counter=self.counter,
            receive_counter=self.received,
            challenge=b"0123456789abcdef",
        )
        with TcpLink("127.0.0.1", self.port, 30) as link:
            client = Client(link, Association(settings))
            client.associate()
            yield client

    def works(self, guek: bytes, gak: bytes) -> bool:
        try:
            with self.associated(guek, gak) as client:
                return client.get(ACTIVE_ENERGY).integer() == 123_456
        except MeterRefusedError:
            return False


def transfer(client: Client, keys: dict[KeyId, bytes], master: bytes = OLD[KeyId.MASTER]) -> None:
    wrapped = [KeyTransfer(key_id, aes_key_wrap(master, key)) for key_id, key in keys.items()]
    client.action(security_setup.key_transfer_method(), security_setup.encode_key_transfer(wrapped))


@contextmanager
def head_end(settings: MeterSettings | None = None) -> Iterator[Head]:
    with serving([Meter(fresh(), settings)]) as (port,):
        yield Head(port)


@pytest.mark.parametrize("activate", list(Activation))
def test_transferred_keys_replace_the_old_ones(activate: Activation) -> None:
    with head_end(MeterSettings(activate=activate)) as head:
        with head.associated(OLD[KeyId.GUEK], OLD[KeyId.GAK]) as client:
            transfer(client, BOTH)
            client.release()
        assert head.works(NEW_GUEK, NEW_GAK)
        assert not head.works(OLD[KeyId.GUEK], OLD[KeyId.GAK])
        assert not head.works(NEW_GUEK, OLD[KeyId.GAK])


def test_keys_wait_for_the_release_where_the_meter_is_of_that_kind() -> None:
    meter = Meter(fresh(), MeterSettings(activate=Activation.RELEASE))
    with serving([meter]) as (port,):
        head = Head(port)
        with head.associated(OLD[KeyId.GUEK], OLD[KeyId.GAK]) as client:
            transfer(client, BOTH)
            assert client.get(ACTIVE_ENERGY).integer() == 123_456
            assert meter.state.keys[KeyId.GUEK] == OLD[KeyId.GUEK]
            client.release()
        assert meter.state.keys[KeyId.GUEK] == NEW_GUEK


def test_the_master_key_is_replaced_under_the_old_one() -> None:
    new_master = b"M" * 16
    with head_end() as head, head.associated(OLD[KeyId.GUEK], OLD[KeyId.GAK]) as client:
        transfer(client, {KeyId.MASTER: new_master})
        with pytest.raises(MeterRefusedError, match="other reason"):
            transfer(client, {KeyId.GBEK: b"B" * 16})
        transfer(client, {KeyId.GBEK: b"B" * 16}, new_master)


def test_a_key_of_another_suites_length_is_refused() -> None:
    with head_end() as head, head.associated(OLD[KeyId.GUEK], OLD[KeyId.GAK]) as client:
        with pytest.raises(MeterRefusedError) as refused:
            transfer(client, {KeyId.GUEK: bytes(32)})
        assert refused.value.event.code == 250
        assert refused.value.event.authenticated


@pytest.mark.parametrize(
    ("fault", "refused", "works"),
    [
        (Fault.REJECT, MeterRefusedError, (OLD[KeyId.GUEK], OLD[KeyId.GAK])),
        (Fault.DROP_BEFORE, TransportError, (OLD[KeyId.GUEK], OLD[KeyId.GAK])),
        (Fault.DROP_AFTER, TransportError, (NEW_GUEK, NEW_GAK)),
        (Fault.LIE, None, (OLD[KeyId.GUEK], OLD[KeyId.GAK])),
        (Fault.FIRST_ONLY, None, (NEW_GUEK, OLD[KeyId.GAK])),
    ],
)
def test_faults(fault: Fault, refused: type[Exception] | None, works: tuple[bytes, bytes]) -> None:
    with head_end(MeterSettings(fault=fault)) as head:
        with head.associated(OLD[KeyId.GUEK], OLD[KeyId.GAK]) as client:
            if refused is None:
                transfer(client, BOTH)
            else:
                with pytest.raises(refused):
                    transfer(client, BOTH)
        assert head.works(*works)
        with head.associated(*works) as client:
            transfer(client, BOTH)
        assert head.works(NEW_GUEK, NEW_GAK)


@pytest.mark.parametrize("activate", list(Activation))
def test_counters_restart_with_the_guek_where_the_meter_does_so(activate: Activation) -> None:
    with head_end(MeterSettings(activate=activate, ic_reset=True)) as head:
        with head.associated(OLD[KeyId.GUEK], OLD[KeyId.GAK]) as client:
            transfer(client, BOTH)
            client.release()
        head.counter, head.received = SoftwareCounter(), SoftwareReceiveCounter()
        assert head.works(NEW_GUEK, NEW_GAK)


def test_the_public_client_is_told_the_last_counter_accepted() -> None:
    with head_end() as head:
        head.counter.value = 41
        with head.associated(OLD[KeyId.GUEK], OLD[KeyId.GAK]):
            pass
        with TcpLink("127.0.0.1", head.port, 5) as link:
            client = Client(link, Association(public(METER)))
            client.associate()
            assert client.get(security_setup.invocation_counter()).integer() == 43


def test_a_lowered_counter_is_refused() -> None:
    with head_end() as head:
        assert head.works(OLD[KeyId.GUEK], OLD[KeyId.GAK])
        head.counter.value = 1
        assert not head.works(OLD[KeyId.GUEK], OLD[KeyId.GAK])


def test_suite_2_uses_keys_of_32_octets() -> None:
    with serving([Meter(fresh(SecuritySuite.SUITE_2))]) as (port,):
        keys = OLD[KeyId.GUEK] * 2, OLD[KeyId.GAK] * 2
        with Head(port).associated(*keys, suite=SecuritySuite.SUITE_2) as client:
            assert client.get(ACTIVE_ENERGY).integer() == 123_456


def test_a_fleet_has_one_port_for_each_meter() -> None:
    fleet = [Meter(MeterState(SystemTitle.from_serial("MMM", n), SecuritySuite.SUITE_0, dict(OLD))) for n in range(5)]
    with serving(fleet) as ports:
        assert len(set(ports)) == 5


def test_a_taken_port_is_named() -> None:
    with (
        serving([Meter(fresh())]) as (port,),
        pytest.raises(TransportError, match=str(port)),
        serving([Meter(fresh())], port=port),
    ):
        pass


def test_the_state_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "meter.json"
    state_file.save_to(path)(fresh())
    with serving([Meter(state_file.load(path), save=state_file.save_to(path))]) as (port,):
        head = Head(port)
        with head.associated(OLD[KeyId.GUEK], OLD[KeyId.GAK]) as client:
            transfer(client, BOTH)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["keys"]["guek"] == NEW_GUEK.hex()
    assert document["rx_ic"] == head.counter.value
    with serving([Meter(state_file.load(path))]) as (port,):
        head.port = port
        assert head.works(NEW_GUEK, NEW_GAK)


def test_a_state_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "meter.json"
    state_file.save_to(path)(fresh())
    path.chmod(0o644)
    with pytest.raises(InputError, match="readable by others"):
        state_file.load(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"system_title": 1}', '{"system_title": "4D4D4D0000BC614E", "suite": 7}']
)
def test_other_text_is_no_state(text: str) -> None:
    with pytest.raises(InputError):
        state_file.decode(text)


def test_keys_that_do_not_fit_the_suite_are_no_state() -> None:
    with pytest.raises(InputError, match="four keys of 32 octets"):
        MeterState(METER, SecuritySuite.SUITE_2, dict(OLD))


def test_the_state_does_not_show_its_keys() -> None:
    assert "keys" not in repr(fresh())


@given(st.binary(max_size=100), st.sampled_from([1, 16]))
def test_a_meter_answers_or_drops_whatever_comes(octets: bytes, sap: int) -> None:
    session = Session(Meter(fresh()))
    for start in (b"", b"\x60", b"\x62\x00", b"\xc8\x20\x30", b"\xc0\x01\xc1"):
        try:
            assert session.receive(start + octets, sap)
        except DroppedError:
            continue


def test_software_keys_need_a_protection_and_a_tag() -> None:
    keys = SoftwareKeys(NEW_GUEK, NEW_GAK)
    with pytest.raises(RefusedError):
        keys.protect(bytes(12), 0, b"", b"data")
    with pytest.raises(IntegrityError):
        keys.unprotect(bytes(12), 0x30, b"", bytes(11))


def test_counters_end_at_32_bits() -> None:
    counter = SoftwareCounter((1 << 32) - 1)
    assert counter.next() == (1 << 32) - 1
    with pytest.raises(RefusedError, match="used up"):
        counter.next()
