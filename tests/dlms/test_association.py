from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import acse, axdr, ciphering, security_setup
from hsmkm.dlms.association import MOST_BLOCKS, Association, State
from hsmkm.dlms.events import Associated, Event, RefusalKind, Refused, Released, Result, Send
from hsmkm.dlms.settings import AssociationSettings, public
from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, Mechanism, MethodRef, SecuritySuite, SystemTitle
from hsmkm.dlms.xdlms import ActionResult, ExceptionResponse, GetBlock, GetResult
from hsmkm.errors import IntegrityError, ProtocolError, RefusedError
from hsmkm.simulator.behaviour import MeterSettings
from hsmkm.simulator.keys import SoftwareCounter, SoftwareKeys, SoftwareReceiveCounter
from hsmkm.simulator.meter import ACTIVE_ENERGY, LONG_VALUE, PROFILE_OCTETS, Meter
from hsmkm.simulator.session import Session
from hsmkm.simulator.state import MeterState

GUEK, GAK = bytes(range(16)), bytes(range(0xD0, 0xE0))
METER, CLIENT = SystemTitle.parse("4D4D4D0000BC614E"), SystemTitle.parse("4D4D4D0000000001")
KEYS = {KeyId.GUEK: GUEK, KeyId.GBEK: bytes(16), KeyId.GAK: GAK, KeyId.MASTER: b"1" * 16}
CHALLENGE = b"of the client, 1"
CONTROL = 0x30
UNKNOWN = AttributeRef(1, LogicalName.parse("0.0.96.1.0.255"), 2)


def settings(**changes: object) -> AssociationSettings:
    made = AssociationSettings(
        client_sap=1,
        server_sap=1,
        client_title=CLIENT,
        server_title=METER,
        mechanism=Mechanism.HLS_GMAC,
        key=SoftwareKeys(GUEK, GAK),
        counter=SoftwareCounter(),
        receive_counter=SoftwareReceiveCounter(),
        challenge=CHALLENGE,
    )
    return replace(made, **changes)  # type: ignore[arg-type] # each test changes fields of its own


class Pair:
    """An association wired to a meter; `between` may put another answer in place of the meter's."""

    def __init__(self, made: AssociationSettings | None = None, meter: Meter | None = None) -> None:
        self.association = Association(made or settings())
        self.meter = meter or Meter(MeterState(METER, SecuritySuite.SUITE_0, dict(KEYS)))
        self.session = Session(self.meter)
        self.between: Callable[[bytes], bytes] = lambda answer: answer
        self.sent: list[bytes] = []

    def step(self, request: bytes) -> Event:
        self.sent.append(request)
        answer = self.session.receive(request, self.association.settings.client_sap)
        self.session.sent()
        return self.association.receive(self.between(answer))

    def drive(self, request: bytes) -> Event:
        event = self.step(request)
        while isinstance(event, Send):
            event = self.step(event.apdu)
        return event

    def associate(self) -> Event:
        return self.drive(self.association.associate())


@pytest.fixture
def pair() -> Pair:
    opened = Pair()
    assert isinstance(opened.associate(), Associated)
    return opened


def answer_of_meter(plain: bytes, counter: int = 500, control: int = CONTROL) -> bytes:
    return ciphering.protect(plain, SoftwareKeys(GUEK, GAK), control, METER, counter)


def test_mutual_authentication_opens_the_association() -> None:
    pair = Pair()
    assert pair.associate() == Associated(METER, 1024)
    assert pair.drive(pair.association.release()) == Released()
    assert pair.association.state is State.CLOSED


def test_the_token_takes_a_counter_value_of_its_own(pair: Pair) -> None:
    aarq = acse.parse_request(pair.sent[0])
    carrier = ciphering.parse(pair.sent[1])
    assert ciphering.parse(aarq.initiate).counter == 1
    assert carrier.counter == 3
    plain = ciphering.unprotect(carrier, SoftwareKeys(GUEK, GAK), CLIENT)
    assert plain[-17:-12] == bytes.fromhex("1000000002")


def test_values_are_read(pair: Pair) -> None:
    event = pair.drive(pair.association.get(ACTIVE_ENERGY))
    assert event == Result(axdr.double_long_unsigned(123_456))


def test_a_long_value_comes_in_blocks(pair: Pair) -> None:
    before = len(pair.sent)
    event = pair.drive(pair.association.get(LONG_VALUE))
    assert isinstance(event, Result)
    assert event.data is not None
    assert len(event.data.octets()) == PROFILE_OCTETS
    assert len(pair.sent) - before == 6


def test_a_refusal_under_the_keys_is_authenticated(pair: Pair) -> None:
    event = pair.drive(pair.association.get(UNKNOWN))
    assert event == Refused("object undefined", RefusalKind.DATA_ACCESS, 4, authenticated=True)
    event = pair.drive(pair.association.set(ACTIVE_ENERGY, axdr.enum(1)))
    assert event == Refused("read-write denied", RefusalKind.DATA_ACCESS, 3, authenticated=True)
    event = pair.drive(pair.association.action(MethodRef(64, UNKNOWN.logical_name, 1)))
    assert event == Refused("read-write denied", RefusalKind.ACTION, 3, authenticated=True)


def test_the_public_client_reads_counter_and_title_only() -> None:
    pair = Pair(public(METER))
    assert isinstance(pair.associate(), Associated)
    assert pair.drive(pair.association.get(security_setup.invocation_counter())) == Result(axdr.double_long_unsigned(0))
    event = pair.drive(pair.association.get(ACTIVE_ENERGY))
    assert event == Refused("read-write denied", RefusalKind.DATA_ACCESS, 3, authenticated=False)


def test_a_stale_counter_is_rejected_and_nothing_is_believed_of_it() -> None:
    state = MeterState(METER, SecuritySuite.SUITE_0, dict(KEYS), rx_ic=100)
    pair = Pair(meter=Meter(state))
    event = pair.associate()
    assert isinstance(event, Refused)
    assert (event.kind, event.authenticated) == (RefusalKind.REJECTED, False)
    assert pair.association.state is State.CLOSED


def test_a_counter_error_tells_the_lowest_value_as_a_hint(pair: Pair) -> None:
    pair.meter.state.rx_ic = 1000
    event = pair.drive(pair.association.get(ACTIVE_ENERGY))
    assert event == Refused("invocation counter error", RefusalKind.EXCEPTION, 6, authenticated=False, counter=1000)
    assert pair.association.state is State.ASSOCIATED


def test_wrong_keys_do_not_associate() -> None:
    pair = Pair(settings(key=SoftwareKeys(GAK, GUEK)))
    event = pair.associate()
    assert isinstance(event, Refused)
    assert event.kind is RefusalKind.REJECTED


def test_another_meter_is_refused() -> None:
    other = SystemTitle.parse("4D4D4D0000BC614F")
    pair = Pair(settings(server_title=other))
    with pytest.raises(IntegrityError, match="answered in place of 4D4D4D0000BC614F"):
        pair.associate()
    assert pair.association.state is State.CLOSED


def test_a_meter_that_skips_its_proof_is_refused() -> None:
    pair = Pair()
    event = pair.step(pair.association.associate())
    assert isinstance(event, Send)
    with pytest.raises(IntegrityError, match="did not answer the challenge"):
        pair.association.receive(answer_of_meter(ActionResult(1, 0).encode()))


def test_a_meter_that_proves_another_challenge_is_refused() -> None:
    pair = Pair()
    event = pair.step(pair.association.associate())
    assert isinstance(event, Send)
    forged = ActionResult(1, 0, axdr.octet_string(bytes.fromhex("10000000FF") + bytes(12)))
    with pytest.raises(IntegrityError):
        pair.association.receive(answer_of_meter(forged.encode()))


def test_an_accepted_association_without_mechanism_or_with_our_challenge_is_refused() -> None:
    for change in ({"mechanism": None}, {"challenge": None}, {"challenge": CHALLENGE}, {"challenge": b"short"}):
        pair = Pair()
        pair.between = lambda answer, change=change: replace(  # type: ignore[misc] # binds the change of this round
            acse.parse_response(answer), **change
        ).encode()
        with pytest.raises((IntegrityError, ProtocolError)):
            pair.associate()


def test_a_plain_initiate_response_is_refused() -> None:
    pair = Pair()
    plain = bytes.fromhex("0800065F1F040000501904000007")
    pair.between = lambda answer: replace(acse.parse_response(answer), user_information=plain).encode()
    with pytest.raises(IntegrityError, match="not ciphered"):
        pair.associate()


def test_a_plain_answer_in_a_ciphered_association_is_refused(pair: Pair) -> None:
    pair.between = lambda _: GetResult(2, 0, axdr.enum(1)).encode()
    with pytest.raises(IntegrityError, match="not ciphered"):
        pair.drive(pair.association.get(ACTIVE_ENERGY))
    assert pair.association.state is State.CLOSED


def test_an_answer_that_is_only_authenticated_is_refused(pair: Pair) -> None:
    pair.between = lambda _: answer_of_meter(GetResult(2, 0, axdr.enum(1)).encode(), control=0x10)
    with pytest.raises(IntegrityError, match="not ciphered as"):
        pair.drive(pair.association.get(ACTIVE_ENERGY))


def test_an_old_answer_replayed_is_refused(pair: Pair) -> None:
    answers: list[bytes] = []

    def record(answer: bytes) -> bytes:
        answers.append(answer)
        return answer

    pair.between = record
    pair.drive(pair.association.get(ACTIVE_ENERGY))
    pair.between = lambda _: answers[0]
    with pytest.raises(IntegrityError, match="lowest acceptable"):
        pair.drive(pair.association.get(ACTIVE_ENERGY))


def test_an_answer_to_another_request_or_service_is_refused(pair: Pair) -> None:
    pair.between = lambda _: answer_of_meter(GetResult(7, 0, axdr.enum(1)).encode())
    with pytest.raises(ProtocolError, match="another request"):
        pair.drive(pair.association.get(ACTIVE_ENERGY))
    second = Pair()
    second.associate()
    second.between = lambda _: answer_of_meter(ActionResult(2, 0).encode())
    with pytest.raises(IntegrityError):
        second.drive(second.association.get(ACTIVE_ENERGY))


@pytest.mark.parametrize(
    "block",
    [
        GetBlock(2, last=False, number=2, error=0, raw=b"\x09"),
        GetBlock(2, last=False, number=1, error=0, raw=b""),
        GetBlock(2, last=True, number=1, error=0, raw=b"\x09\x02\x00"),
    ],
)
def test_blocks_out_of_order_empty_or_cut_are_refused(pair: Pair, block: GetBlock) -> None:
    pair.between = lambda _: answer_of_meter(block.encode())
    with pytest.raises(ProtocolError):
        pair.drive(pair.association.get(LONG_VALUE))


def test_a_block_may_carry_a_refusal(pair: Pair) -> None:
    pair.between = lambda _: answer_of_meter(GetBlock(2, last=True, number=1, error=14).encode())
    event = pair.drive(pair.association.get(LONG_VALUE))
    assert event == Refused("data block unavailable", RefusalKind.DATA_ACCESS, 14, authenticated=True)


def test_a_meter_cannot_send_blocks_without_end() -> None:
    pair = Pair(public())
    pair.associate()
    pair.association.get(LONG_VALUE)
    for number in range(1, 18):
        block = GetBlock(1, last=False, number=number, error=0, raw=bytes(60_000))
        assert isinstance(pair.association.receive(block.encode()), Send)
    with pytest.raises(ProtocolError, match="too large"):
        pair.association.receive(GetBlock(1, last=False, number=18, error=0, raw=bytes(60_000)).encode())


def test_a_meter_cannot_send_its_value_in_crumbs() -> None:
    pair = Pair(public())
    pair.associate()
    pair.association.get(LONG_VALUE)
    for number in range(1, MOST_BLOCKS + 1):
        assert isinstance(pair.association.receive(GetBlock(1, False, number, 0, b"\0").encode()), Send)
    with pytest.raises(ProtocolError, match=f"more than {MOST_BLOCKS} blocks"):
        pair.association.receive(GetBlock(1, False, MOST_BLOCKS + 1, 0, b"\0").encode())


def test_a_request_larger_than_the_meter_takes_is_not_sent(pair: Pair) -> None:
    with pytest.raises(RefusedError, match="the meter takes 1024"):
        pair.association.action(security_setup.key_transfer_method(), axdr.octet_string(bytes(1100)))
    assert pair.association.state is State.ASSOCIATED


def test_calls_out_of_order_are_refused(pair: Pair) -> None:
    fresh = Association(settings())
    for call in (fresh.release, lambda: fresh.get(ACTIVE_ENERGY), pair.association.associate):
        with pytest.raises(RefusedError):
            call()
    with pytest.raises(ProtocolError, match="none was awaited"):
        pair.association.receive(b"\xd8\x01\x05")
    pair.association.get(ACTIVE_ENERGY)
    with pytest.raises(RefusedError, match="getting"):
        pair.association.get(ACTIVE_ENERGY)


def test_a_call_out_of_order_does_not_disturb_the_one_that_waits(pair: Pair) -> None:
    waiting = pair.association.get(ACTIVE_ENERGY)
    with pytest.raises(RefusedError):
        pair.association.action(security_setup.key_transfer_method())
    assert isinstance(pair.drive(waiting), Result)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": None},
        {"counter": None},
        {"receive_counter": None},
        {"client_title": None},
        {"server_title": None},
        {"server_title": CLIENT},
        {"challenge": bytes(7)},
        {"challenge": bytes(65)},
        {"mechanism": Mechanism.NONE},
        {"mechanism": Mechanism.HLS_SHA256},
    ],
)
def test_settings_that_would_weaken_an_association_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RefusedError):
        settings(**changes)


def test_settings_do_not_show_keys_or_challenges() -> None:
    assert "SoftwareKeys" not in repr(settings())
    assert "of the client" not in repr(settings())


@given(st.binary(max_size=120))
def test_hostile_answers_raise_nothing_but_protocol_and_integrity_errors(octets: bytes) -> None:
    for start in (b"", b"\x61", b"\xcc\x20\x30", b"\xd8", b"\x0e"):
        for opened in (False, True):
            pair = Pair()
            if opened:
                pair.associate()
                pair.association.get(ACTIVE_ENERGY)
            else:
                pair.association.associate()
            try:
                event = pair.association.receive(start + octets)
            except (ProtocolError, IntegrityError):
                assert pair.association.state is State.CLOSED
                continue
            assert isinstance(event, Refused)
            assert not event.authenticated


def test_a_forged_exception_is_marked_as_unauthenticated(pair: Pair) -> None:
    pair.between = lambda _: ExceptionResponse(1, 6, 0xFFFF_FFFF).encode()
    event = pair.drive(pair.association.get(ACTIVE_ENERGY))
    assert isinstance(event, Refused)
    assert (event.authenticated, event.counter) == (False, 0xFFFF_FFFF)


def test_the_meter_demands_a_fresh_counter_of_its_own_for_the_token() -> None:
    class Twice(SoftwareCounter):
        def next(self) -> int:
            return min(super().next(), 2)

    pair = Pair(settings(counter=Twice()))
    event = pair.associate()
    assert isinstance(event, Refused)
    assert event.kind is RefusalKind.ACTION


def test_a_meter_that_sends_our_challenge_back_gains_nothing() -> None:
    state = MeterState(METER, SecuritySuite.SUITE_0, dict(KEYS))
    mirror = Meter(state, MeterSettings(challenge=lambda _: CHALLENGE))
    with pytest.raises(ProtocolError, match="our own"):
        Pair(meter=mirror).associate()
