"""A meter that has the right keys and answers with whatever it likes: refused within bounds, each time by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import axdr, ciphering
from hsmkm.dlms.association import LARGEST_VALUE, Association
from hsmkm.dlms.axdr import MAX_DEPTH, MAX_VALUES
from hsmkm.dlms.channel import Channel, Opened
from hsmkm.dlms.ciphering import GLO_OF_PLAIN
from hsmkm.dlms.octets import encode_counted
from hsmkm.dlms.protection import Protection
from hsmkm.dlms.settings import AssociationSettings
from hsmkm.dlms.types import KeyId, LogicalName, Mechanism, MethodRef, SecuritySuite, SystemTitle
from hsmkm.dlms.xdlms import GetBlock
from hsmkm.errors import IntegrityError, ProtocolError
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.simulator.keys import SoftwareCounter, SoftwareKeys, SoftwareReceiveCounter
from hsmkm.simulator.meter import ACTIVE_ENERGY, LONG_VALUE, Meter
from hsmkm.simulator.session import Session
from hsmkm.simulator.state import MeterState

METER, CLIENT = SystemTitle.parse("4D4D4D0000BC614E"), SystemTitle.parse("4D4D4D0000000001")
KEYS = dict(zip(KeyId, (bytes([number]) * 16 for number in range(1, 5)), strict=True))
TRANSFER = MethodRef(64, LogicalName.parse("0.0.43.0.0.255"), 2)

CONTROL = 0x30

Say = Callable[[bytes], bytes]


class Hostile(Session):
    """A session that may put anything in place of a plain answer, and protects it as it should."""

    say: Say = staticmethod(bytes)

    def _answered(self, _channel: Channel, apdu: bytes, _opened: Opened, _protection: Protection) -> bytes:
        traffic = self._unicast
        content = ciphering.seal(self.say(apdu), traffic.key, CONTROL, METER, traffic.sent.next())
        return bytes([GLO_OF_PLAIN[apdu[0]]]) + encode_counted(content.encode())


class Wire:
    """A link to a hostile meter in this process; `raw` changes what is on the wire."""

    def __init__(self) -> None:
        self.session = Hostile(Meter(MeterState(METER, SecuritySuite.SUITE_0, dict(KEYS))))
        self.raw: Say = bytes
        self.exchanges = 0

    def exchange(self, apdu: bytes, client_sap: int, _server_sap: int) -> bytes:
        self.exchanges += 1
        answer = self.session.receive(apdu, client_sap)
        self.session.sent()
        return self.raw(answer)

    def send(self, apdu: bytes, client_sap: int, server_sap: int) -> None: ...


def settings() -> AssociationSettings:
    return AssociationSettings(
        client_sap=1,
        server_sap=1,
        client_title=CLIENT,
        server_title=METER,
        mechanism=Mechanism.HLS_GMAC,
        key=SoftwareKeys(KEYS[KeyId.GUEK], KEYS[KeyId.GAK]),
        counter=SoftwareCounter(),
        receive_counter=SoftwareReceiveCounter(),
        challenge=b"of the client, 1",
    )


def connected() -> tuple[Wire, Client]:
    wire = Wire()
    client = Client(wire, Association(settings()))
    client.associate()
    return wire, client


def nested(depth: int) -> bytes:
    return b"\x01\x01" * depth + b"\x00"


GOOD = bytes.fromhex("C401C10006")
HOSTILE = {
    "nothing behind the head": bytes.fromhex("C401C1"),
    "too short a value": GOOD + b"\0\1\2",
    "octets behind the value": GOOD + bytes(9),
    "another service": bytes.fromhex("C701C1000000"),
    "a service nobody knows": bytes.fromhex("C409C100"),
    "a request": bytes.fromhex("C001C1") + bytes(10),
    "another invoke id": bytes.fromhex("C401C700") + b"\x11\x01",
    "an array larger than its octets": bytes.fromhex("C401C1000184FFFFFFFF"),
    "an array of more values than are taken": bytes.fromhex("C401C1000183")
    + (MAX_VALUES + 1).to_bytes(3, "big")
    + bytes(MAX_VALUES + 1),
    "arrays of arrays": bytes.fromhex("C401C100") + nested(MAX_DEPTH + 1),
    "a compact array": bytes.fromhex("C401C100130600"),
    "an octet-string longer than the APDU": bytes.fromhex("C401C1000984FFFFFFFF00"),
    "a length field of five octets": bytes.fromhex("C401C1000985FFFFFFFFFF"),
    "text that is none": bytes.fromhex("C401C1000C02C0C0"),
    "success without a value": bytes.fromhex("C401C10100"),
    "the second block first": GetBlock(2, last=False, number=2, error=0, raw=b"\0").encode(),
    "an empty block": GetBlock(2, last=False, number=1, error=0, raw=b"").encode(),
    "an initiate response": bytes.fromhex("0800065F1F040000501D04000007"),
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_what_a_meter_says_under_the_right_keys_is_refused_where_it_is_no_answer(said: bytes) -> None:
    wire, client = connected()
    wire.session.say = lambda _plain: said
    before = wire.exchanges
    with pytest.raises((ProtocolError, IntegrityError)):
        client.get(ACTIVE_ENERGY)
    assert wire.exchanges == before + 1


def test_blocks_without_end_are_refused() -> None:
    wire, client = connected()
    number = 0

    def next_block(_plain: bytes) -> bytes:
        nonlocal number
        number += 1
        return GetBlock(2, last=False, number=number, error=0, raw=bytes(60_000)).encode()

    wire.session.say = next_block
    with pytest.raises(ProtocolError, match="too large"):
        client.get(LONG_VALUE)
    assert number <= LARGEST_VALUE // 60_000 + 1


def mutated(plain: bytes, places: list[tuple[int, int]], cut: int | None, tail: bytes) -> bytes:
    octets = bytearray(plain)
    for place, value in places:
        octets[place % len(octets)] = value
    return bytes(octets[:cut]) + tail


@given(
    places=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 40),
    tail=st.binary(max_size=12),
    service=st.sampled_from(["associate", "get", "long", "action"]),
    on_the_wire=st.booleans(),
)
def test_no_answer_does_more_than_refuse_or_be_taken_for_what_it_says(
    places: list[tuple[int, int]], cut: int | None, tail: bytes, service: str, *, on_the_wire: bool
) -> None:
    wire = Wire()
    client = Client(wire, Association(settings()))

    def say(octets: bytes) -> bytes:
        return mutated(octets, places, cut, tail)

    def begin() -> None:
        wire.raw, wire.session.say = (say, bytes) if on_the_wire else (bytes, say)

    try:
        if service == "associate":
            begin()
        client.associate()
        begin()
        if service == "action":
            client.action(TRANSFER, axdr.array())
        else:
            client.get(LONG_VALUE if service == "long" else ACTIVE_ENERGY)
    except (ProtocolError, IntegrityError, MeterRefusedError):
        pass
    assert wire.exchanges < 100
