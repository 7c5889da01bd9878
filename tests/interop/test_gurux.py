"""Our client against the independent meter on gurux-dlms, and gurux-dlms' client against our meter."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from hsmkm.dlms import security_setup
from hsmkm.dlms.association import Association
from hsmkm.dlms.events import RefusalKind
from hsmkm.dlms.security_setup import Attribute, KeyTransfer
from hsmkm.dlms.settings import AssociationSettings, public
from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import TransportError
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.link.tcp import TcpLink
from hsmkm.simulator.keys import SoftwareCounter, SoftwareKeys, SoftwareReceiveCounter
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import MeterState

pytestmark = pytest.mark.slow

StartMeter = Callable[..., int]

METER, CLIENT = SystemTitle.parse("4D4D4D0000BC614E"), SystemTitle.parse("4D4D4D0000000001")
GUEK, GAK = bytes(range(16)), bytes(range(0xD0, 0xE0))
MASTER = b"1" * 16
REGISTER = AttributeRef(3, LogicalName.parse("1.0.1.8.0.255"), 2)
MISSING = AttributeRef(1, LogicalName.parse("0.0.96.1.0.255"), 2)


class Head:
    """A head end with counters that outlive its associations."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counter = SoftwareCounter()
        self.received = SoftwareReceiveCounter()

    @contextmanager
    def associated(self, guek: bytes = GUEK, gak: bytes = GAK, *, suite: int = 0) -> Iterator[Client]:
        settings = AssociationSettings(
            client_sap=1,
            server_sap=1,
            client_title=CLIENT,
            server_title=METER,
            mechanism=Mechanism.HLS_GMAC,
            suite=SecuritySuite(suite),
            key=SoftwareKeys(guek, gak),
            counter=self.counter,
            receive_counter=self.received,
            challenge=secrets.token_bytes(16),
        )
        with TcpLink("127.0.0.1", self.port, 20) as link:
            client = Client(link, Association(settings))
            client.associate()
            yield client

    def told_counter(self) -> int:
        with TcpLink("127.0.0.1", self.port, 20) as link:
            client = Client(link, Association(public()))
            client.associate()
            value = client.get(security_setup.invocation_counter()).integer()
            client.release()
            return value

    def refused(self, guek: bytes, gak: bytes) -> MeterRefusedError:
        with pytest.raises(MeterRefusedError) as refused, self.associated(guek, gak):
            pass
        return refused.value


def transfer(client: Client, master: bytes, keys: dict[KeyId, bytes]) -> None:
    wrapped = [KeyTransfer(key_id, aes_key_wrap(master, key)) for key_id, key in keys.items()]
    client.action(security_setup.key_transfer_method(), security_setup.encode_key_transfer(wrapped))


def test_the_counter_is_told_to_the_public_client(start_meter: StartMeter) -> None:
    assert Head(start_meter("--ic", "41")).told_counter() == 41


def test_hls_gmac_then_values_and_refusals(start_meter: StartMeter) -> None:
    head = Head(start_meter())
    with head.associated() as client:
        assert client.get(REGISTER).integer() == 123_456
        assert client.get(security_setup.attribute(Attribute.SERVER_SYSTEM_TITLE)).octets() == METER.octets
        with pytest.raises(MeterRefusedError) as refused:
            client.get(MISSING)
        assert (refused.value.event.kind, refused.value.event.authenticated) == (RefusalKind.DATA_ACCESS, True)
        with pytest.raises(MeterRefusedError, match="read-write denied"):
            client.set(REGISTER, security_setup.encode_key_transfer([]))
        client.release()


def test_suite_2_is_understood(start_meter: StartMeter) -> None:
    guek, gak = GUEK * 2, GAK * 2
    keys = ("--guek", guek.hex(), "--gak", gak.hex(), "--kek", (MASTER * 2).hex())
    with Head(start_meter("--suite", "2", *keys)).associated(guek, gak, suite=2) as client:
        assert client.get(REGISTER).integer() == 123_456


@pytest.mark.parametrize("activate", ["now", "after-response", "release"])
def test_all_keys_are_renewed_and_the_old_ones_refused(start_meter: StartMeter, activate: str) -> None:
    head = Head(start_meter("--activate", activate))
    guek, gak, master = (secrets.token_bytes(16) for _ in range(3))
    with head.associated() as client:
        transfer(client, MASTER, {KeyId.GUEK: guek, KeyId.GAK: gak})
        client.release()
    assert head.refused(GUEK, GAK).event.kind is RefusalKind.REJECTED
    with head.associated(guek, gak) as client:
        transfer(client, MASTER, {KeyId.MASTER: master})
    with head.associated(guek, gak) as client:
        with pytest.raises(MeterRefusedError):
            transfer(client, MASTER, {KeyId.GBEK: GUEK})
        transfer(client, master, {KeyId.GBEK: secrets.token_bytes(16)})


def test_the_meter_may_take_one_key_of_two(start_meter: StartMeter) -> None:
    head = Head(start_meter("--fault", "first-only"))
    guek, gak = secrets.token_bytes(16), secrets.token_bytes(16)
    with head.associated() as client:
        transfer(client, MASTER, {KeyId.GUEK: guek, KeyId.GAK: gak})
    head.refused(guek, gak)
    with head.associated(guek, GAK) as client:
        assert client.get(REGISTER).integer() == 123_456


def test_a_lost_answer_is_a_transport_error(start_meter: StartMeter) -> None:
    head = Head(start_meter("--fault", "drop-after"))
    guek, gak = secrets.token_bytes(16), secrets.token_bytes(16)
    with head.associated() as client, pytest.raises(TransportError):
        transfer(client, MASTER, {KeyId.GUEK: guek, KeyId.GAK: gak})
    with head.associated(guek, gak) as client:
        assert client.get(REGISTER).integer() == 123_456


def test_a_stale_counter_is_refused_with_the_meters_own(start_meter: StartMeter) -> None:
    head = Head(start_meter("--ic", "100"))
    assert head.refused(GUEK, GAK).event.kind is RefusalKind.REJECTED
    head.counter.value = head.told_counter() + 1
    with head.associated() as client:
        head.counter.value = 50
        with pytest.raises(MeterRefusedError) as refused:
            client.get(REGISTER)
    event = refused.value.event
    assert (event.kind, event.code, event.counter) == (RefusalKind.EXCEPTION, 6, 103)
    assert not event.authenticated


def test_the_client_of_gurux_renews_keys_of_our_meter(gurux_python: Path) -> None:
    keys = {KeyId.GUEK: GUEK, KeyId.GBEK: bytes(16), KeyId.GAK: GAK, KeyId.MASTER: MASTER}
    new = [secrets.token_bytes(16) for _ in range(2)]
    meter = Meter(MeterState(METER, SecuritySuite.SUITE_0, keys, rx_ic=7))
    program = Path(__file__).parent / "gurux_client.py"
    with serving([meter]) as (port,):
        arguments = [str(port), *(value.hex() for value in (GUEK, GAK, MASTER, *new))]
        command = [str(gurux_python), str(program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "123456", done.stderr[-2000:]
    assert [meter.state.keys[KeyId.GUEK], meter.state.keys[KeyId.GAK]] == new
