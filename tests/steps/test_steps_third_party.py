"""A third party reaches a meter end to end, and the broker between them can neither read nor alter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hsmkm.dlms import general
from hsmkm.dlms.channel import Channel, Opened
from hsmkm.dlms.general import AgreedKey, GeneralCiphering, GeneralSigning
from hsmkm.dlms.types import AttributeRef, LogicalName, SecuritySuite
from hsmkm.errors import HsmkmError, InputError, IntegrityError, PolicyError, ProtocolError, RefusedError
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.packages.receive import inspect_package
from hsmkm.simulator.session import Session
from hsmkm.steps import broker, third_party
from hsmkm.steps.broker import forward
from hsmkm.steps.communicate import Conversation, active_key_set, associated, conversation, find_meter, read
from hsmkm.steps.credentials import Pair
from hsmkm.steps.enrol import introduce
from hsmkm.steps.exporting import export
from hsmkm.steps.party import Party
from hsmkm.steps.permit import permit, withdraw
from hsmkm.steps.receive import receive_file
from hsmkm.steps.results import Wanted
from hsmkm.steps.third_party import open_answer, protect
from hsmkm.store import audit, intents, key_sets
from hsmkm.token.types import KeyRole
from tests.field import ENERGY
from tests.mechanisms import TITLE
from tests.realm import Realm, copy_realm
from tests.third import STRANGER, THIRD, Reach, delivered, join, make, reached

VALUE = 123_456
PLAIN = (VALUE).to_bytes(4, "big")
LOGICAL_NAME = bytes([1, 0, 1, 8, 0, 255])
REFUSALS = (IntegrityError, RefusedError, InputError, ProtocolError)
SIGNED_POLICY = 0xFC


def ask(reach: Reach, key: str = "one-pass", *, signed: bool = False, attribute: AttributeRef = ENERGY) -> bytes:
    """Protect a request in the third party's home."""
    path = reach.file("request.apdu")
    with reach.realm.open(THIRD) as party:
        protect(party, TITLE, Wanted(attribute, key, signed), path)
    return path.read_bytes()


def carry(reach: Reach, apdu: bytes) -> bytes:
    with reach.realm.open("utility") as party:
        return forward(party, apdu)


def opened(reach: Reach, answer: bytes) -> object:
    with reach.realm.open(THIRD) as party:
        return open_answer(party, answer).data.value


@pytest.fixture(scope="module")
def reach(realm_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reach]:
    """One meter of suite 1 for all tests that leave it as it is."""
    realm = copy_realm(realm_template, tmp_path_factory.mktemp("third") / "realm")
    with reached(realm, 1) as made:
        yield made


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize(("key", "signed"), [("one-pass", False), ("static", True)])
def test_a_value_is_read_by_files_that_the_head_end_carries(
    realm: Realm, suite: int, key: str, *, signed: bool
) -> None:
    with reached(realm, suite) as reach:
        request = ask(reach, key, signed=signed)
        answer = carry(reach, request)
        assert opened(reach, answer) == VALUE
        assert {apdu[0] == general.GENERAL_SIGNING for apdu in (request, answer)} == {signed}
        second = carry(reach, ask(reach, key, signed=signed))
        assert opened(reach, second) == VALUE


def test_a_policy_that_demands_signatures_has_the_request_signed(realm: Realm) -> None:
    extra = f"[protection]\npolicy = {SIGNED_POLICY:#x}\n"
    with reached(realm, 1, extra, SIGNED_POLICY) as reach:
        request = ask(reach)
        assert request[0] == general.GENERAL_SIGNING
        assert opened(reach, carry(reach, request)) == VALUE


def test_what_the_meter_refuses_is_told_under_its_protection(reach: Reach) -> None:
    unknown = AttributeRef(3, LogicalName.parse("1.0.99.99.0.255"), 2)
    with pytest.raises(RefusedError, match="the meter refused"):
        opened(reach, carry(reach, ask(reach, attribute=unknown)))


def test_a_value_longer_than_one_apdu_is_told_as_such(reach: Reach) -> None:
    long_value = AttributeRef(1, LogicalName.parse("0.0.128.0.0.255"), 2)
    with pytest.raises(RefusedError, match="longer than one APDU"):
        opened(reach, carry(reach, ask(reach, attribute=long_value)))


def test_the_broker_holds_nothing_that_opens_or_shows_it(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plaintext is in what the head end sent and got, its keys open none of it, and its store keeps none of it."""
    heard: list[bytes] = []
    exchange = Client._exchange

    def listening(self: Client, apdu: bytes) -> bytes:
        answer = exchange(self, apdu)
        heard.extend((apdu, answer))
        return answer

    monkeypatch.setattr(Client, "_exchange", listening)
    for signed in (False, True):
        request = ask(reach, signed=signed)
        answer = carry(reach, request)
        assert request in heard
        assert answer in heard
        held = b"".join(heard)
        assert PLAIN not in held
        assert LOGICAL_NAME not in held
        with reach.realm.open("utility") as party, pytest.raises((IntegrityError, InputError, RefusedError)):
            open_answer(party, answer)
        assert opened(reach, answer) == VALUE
    home = reach.realm.home("utility")
    stored = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name.startswith("store"))
    assert request not in stored
    assert answer not in stored


def flips(apdu: bytes) -> Iterator[bytes]:
    """Flip one bit in each octet of headers, key-info and lengths, and in every fourth of what follows."""
    for place in (*range(48), *range(48, len(apdu) - 12, 4), *range(len(apdu) - 12, len(apdu))):
        yield apdu[:place] + bytes([apdu[place] ^ (1 << place % 8)]) + apdu[place + 1 :]


@contextmanager
def brokering(reach: Reach) -> Iterator[Callable[[bytes], bytes]]:
    """Carry whatever is given to the meter in one association, without any check of the head end's."""
    with reach.realm.open("utility") as party:
        meter = find_meter(party, TITLE)
        with conversation(party, meter) as speaking:
            key_set = active_key_set(party, meter, speaking.model)
            with associated(speaking, Pair.of(key_set)) as client:
                yield client._exchange


@pytest.mark.parametrize(("key", "signed"), [("one-pass", False), ("one-pass", True), ("static", False)])
def test_every_altered_octet_of_a_request_is_refused_by_the_meter(reach: Reach, key: str, *, signed: bool) -> None:
    request = ask(reach, key, signed=signed)
    with brokering(reach) as deliver:
        for altered in flips(request):
            assert deliver(altered)[0] == 0xD8, "an exception response, in clear"
        answer = deliver(request)
    assert opened(reach, answer) == VALUE


@pytest.mark.parametrize(("key", "signed"), [("one-pass", False), ("one-pass", True), ("static", False)])
def test_every_altered_octet_of_an_answer_is_refused_by_the_third_party(
    reach: Reach, key: str, *, signed: bool
) -> None:
    answer = carry(reach, ask(reach, key, signed=signed))
    with reach.realm.open(THIRD) as party:
        for altered in flips(answer):
            with pytest.raises(REFUSALS):
                open_answer(party, altered)
        assert open_answer(party, answer).data.value == VALUE


@pytest.mark.parametrize("key", ["one-pass", "static"])
def test_a_request_is_taken_once_and_an_answer_is_opened_once(reach: Reach, key: str) -> None:
    request = ask(reach, key)
    first = carry(reach, request)
    with pytest.raises(MeterRefusedError):
        carry(reach, request)
    assert opened(reach, first) == VALUE
    with pytest.raises(IntegrityError, match="answered before"):
        opened(reach, first)


def test_an_older_request_is_refused_after_a_newer_one(reach: Reach) -> None:
    older, newer = ask(reach), ask(reach)
    assert opened(reach, carry(reach, newer)) == VALUE
    with pytest.raises(MeterRefusedError):
        carry(reach, older)


def test_an_answer_to_no_request_of_ours_is_refused(reach: Reach) -> None:
    first, second = carry(reach, ask(reach)), carry(reach, ask(reach))
    layer = general.parse(first)
    assert isinstance(layer, GeneralCiphering)
    other = general.parse(second)
    assert isinstance(other, GeneralCiphering)
    swapped = GeneralCiphering(other.header, layer.key_info, layer.content).encode()
    with pytest.raises(IntegrityError):
        opened(reach, swapped)
    assert (opened(reach, second), opened(reach, first)) == (VALUE, VALUE)


def test_an_answer_with_less_protection_than_asked_for_is_refused(reach: Reach) -> None:
    """A broker strips the signature off, which the cipher inside does not notice."""
    answer = general.parse(carry(reach, ask(reach, signed=True)))
    assert isinstance(answer, GeneralSigning)
    with pytest.raises(IntegrityError, match="less"):
        opened(reach, answer.content)
    assert opened(reach, answer.encode()) == VALUE


def one_pass(apdu: bytes) -> tuple[GeneralCiphering, bytes, bytes]:
    layer = general.parse(apdu)
    assert isinstance(layer, GeneralCiphering)
    assert isinstance(layer.key_info, AgreedKey)
    octets = SecuritySuite.SUITE_1.point_octets
    return layer, layer.key_info.data[:octets], layer.key_info.data[octets:]


def with_data(layer: GeneralCiphering, data: bytes) -> bytes:
    assert isinstance(layer.key_info, AgreedKey)
    return GeneralCiphering(layer.header, AgreedKey(layer.key_info.parameters, data), layer.content).encode()


def forged_shares(apdu: bytes) -> Iterator[bytes]:
    """Points that are not on the curve, and signatures whose r or s is zero or the order."""
    layer, point, signature = one_pass(apdu)
    half, order = len(signature) // 2, int("FFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551", 16)
    y = int.from_bytes(point[half:], "big")
    for bad in (bytes(2 * half), point[:half] + (y ^ 1).to_bytes(half, "big"), b"\xff" * 2 * half, point[:-1]):
        yield with_data(layer, bad + signature)
    r, s = signature[:half], signature[half:]
    for bad in (bytes(half) + s, r + bytes(half), bytes(2 * half), order.to_bytes(half, "big") + s, r, b""):
        yield with_data(layer, point + bad)


def test_points_off_the_curve_and_empty_signatures_are_refused_both_ways(reach: Reach) -> None:
    request = ask(reach)
    with brokering(reach) as deliver:
        for forged in forged_shares(request):
            assert deliver(forged)[0] == 0xD8
        answer = deliver(request)
    with reach.realm.open(THIRD) as party:
        for forged in forged_shares(answer):
            with pytest.raises(REFUSALS):
                open_answer(party, forged)
        assert open_answer(party, answer).data.value == VALUE


def test_signatures_of_zero_around_the_whole_are_refused_both_ways(reach: Reach) -> None:
    request = ask(reach, signed=True)

    def forged(apdu: bytes) -> Iterator[bytes]:
        layer = general.parse(apdu)
        assert isinstance(layer, GeneralSigning)
        half = len(layer.signature) // 2
        for bad in (bytes(half) + layer.signature[half:], layer.signature[:half] + bytes(half), b""):
            yield GeneralSigning(layer.header, layer.content, bad).encode()

    with brokering(reach) as deliver:
        assert {deliver(each)[0] for each in forged(request)} == {0xD8}
        answer = deliver(request)
    with reach.realm.open(THIRD) as party:
        for each in forged(answer):
            with pytest.raises(REFUSALS):
                open_answer(party, each)


@pytest.mark.parametrize("suite", [0, 2])
def test_an_apdu_of_another_suite_is_refused_both_ways(reach: Reach, suite: int) -> None:
    def other(apdu: bytes) -> bytes:
        layer = general.parse(apdu)
        assert isinstance(layer, GeneralCiphering)
        control = layer.content.security_control & 0xF0 | suite
        content = type(layer.content)(control, layer.content.counter, layer.content.payload)
        return GeneralCiphering(layer.header, layer.key_info, content).encode()

    request = ask(reach)
    with brokering(reach) as deliver:
        assert deliver(other(request))[0] == 0xD8
        answer = deliver(request)
    with pytest.raises(IntegrityError, match="another security suite"):
        opened(reach, other(answer))


def test_a_party_without_a_permission_is_not_carried(realm: Realm) -> None:
    with reached(realm, 1) as reach:
        with realm.open("utility") as party:
            withdraw(party, TITLE, THIRD)
        request = ask(reach)
        with pytest.raises(PolicyError, match=f"{THIRD} may not reach"):
            carry(reach, request)
        with realm.open("utility") as party:
            with pytest.raises(PolicyError):
                export(party, "distribution", THIRD, (TITLE,), None)
            permit(party, TITLE, THIRD)
        assert opened(reach, carry(reach, request)) == VALUE


def test_a_permission_that_is_withdrawn_while_the_meter_is_waited_for_carries_nothing(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reached(realm, 1) as reach:
        request = ask(reach)

        @contextmanager
        def slow(speaking: Conversation, pair: Pair) -> Iterator[Client]:
            with associated(speaking, pair) as client:
                withdraw(speaking.party, TITLE, THIRD)
                yield client

        with monkeypatch.context() as patched:
            patched.setattr(broker, "associated", slow)
            with pytest.raises(PolicyError, match=f"{THIRD} may not reach"):
                carry(reach, request)
        with realm.open("utility") as party:
            permit(party, TITLE, THIRD)
            with party.store.read() as tx:
                assert intents.listing(tx, bytes.fromhex(TITLE), broker.FORWARD) == []
        assert opened(reach, carry(reach, request)) == VALUE


def test_an_answer_that_another_process_opens_meanwhile_is_not_opened_twice(
    reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = carry(reach, ask(reach))
    unprotect = Channel.unprotect
    with reach.realm.open(THIRD) as party:

        def raced(channel: Channel, apdu: bytes) -> Opened:
            with party.store.begin("test-race", TITLE, {}) as tx:
                (waiting,) = intents.unfinished(tx, bytes.fromhex(TITLE))[-1:]
                intents.outcome(tx, waiting.id, third_party.ANSWERED)
            return unprotect(channel, apdu)

        monkeypatch.setattr(Channel, "unprotect", raced)
        with pytest.raises(IntegrityError, match="answered before"):
            third_party.open_answer(party, answer)


def test_a_strange_third_party_is_refused_by_broker_and_meter(reach: Reach) -> None:
    """Registered or not: without a permission it is not carried, and without certificates the meter does not answer."""
    realm, request = reach.realm, ask(reach)
    make(realm, STRANGER)
    join(realm, STRANGER)
    with realm.open(STRANGER) as party:
        own = party.settings.party.system_title
    layer, _, _ = one_pass(request)
    header = general.Header(layer.header.transaction, type(layer.header.originator).parse(own), layer.header.recipient)
    forged = GeneralCiphering(header, layer.key_info, layer.content).encode()
    with pytest.raises(PolicyError, match="may not reach"):
        carry(reach, forged)
    with brokering(reach) as deliver:
        assert deliver(forged)[0] == 0xD8
    with realm.open("utility") as party:
        with pytest.raises(PolicyError, match="no third party"):
            forward(party, request, caller=STRANGER)
        with pytest.raises(RefusedError, match="is of role"):
            permit(party, TITLE, "concentrator")


def test_an_apdu_for_another_meter_is_refused(reach: Reach) -> None:
    request = ask(reach)
    other = "4D4D4D0000000099"
    layer, _, _ = one_pass(request)
    header = general.Header(
        layer.header.transaction, layer.header.originator, type(layer.header.originator).parse(other)
    )
    moved = GeneralCiphering(header, layer.key_info, layer.content).encode()
    with pytest.raises(PolicyError, match=f"may not reach meter {other}"):
        carry(reach, moved)
    with brokering(reach) as deliver:
        assert deliver(moved)[0] == 0xD8
    with reach.realm.open("utility") as party, pytest.raises(RefusedError, match="was brought for"):
        forward(party, request, THIRD, other)


@pytest.mark.parametrize("octets", [b"", b"\xc0\x01", b"\xc8\x10", b"\xdb\x08", b"\xdd\x00", bytes(70_000)])
def test_what_is_no_apdu_between_two_parties_is_not_carried(reach: Reach, octets: bytes) -> None:
    with pytest.raises(InputError):
        carry(reach, octets)


def test_a_lying_meters_answer_for_somebody_else_is_not_carried_back(
    reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(reach)
    recorded = carry(reach, ask(reach))
    receive = Session.receive
    monkeypatch.setattr(
        Session,
        "receive",
        lambda self, apdu, sap: recorded if apdu == request else receive(self, apdu, sap),
    )
    with pytest.raises(IntegrityError, match="not for the request"):
        carry(reach, request)
    with reach.realm.open("utility") as party, party.store.read() as tx:
        assert intents.listing(tx, bytes.fromhex(TITLE), "apdu-forward")[-1].outcome == "unknown"


def test_a_third_party_is_given_the_gak_and_nothing_else(reach: Reach) -> None:
    with reach.realm.open("utility") as party:
        sent = export(party, "distribution", THIRD, (TITLE,), None)
    (entry,) = inspect_package(sent.path.read_bytes()).content.meters
    assert {key.role for key in entry.keys} == {KeyRole.GAK}
    assert entry.address == ""
    with reach.realm.open(THIRD) as party:
        with party.store.read() as tx:
            held = key_sets.active(tx, bytes.fromhex(TITLE), 0, 1)
        assert held is not None
        assert [key.role for key in held.keys] == [KeyRole.GAK]
        with pytest.raises(HsmkmError):
            read(party, TITLE, (ENERGY,))
        with pytest.raises(RefusedError) as caught:
            receive_file(party, sent.path)
    assert any("does not rise" in reason for reason in caught.value.reasons)


def test_what_was_carried_is_on_record_without_its_content(reach: Reach) -> None:
    request = ask(reach)
    carry(reach, request)
    with reach.realm.open("utility") as party, party.store.read() as tx:
        kept = [item for item in audit.log(tx) if item.action == "apdu-forward"][-1]
    assert kept.subject == TITLE
    assert request.hex() not in str(kept.detail)
    assert THIRD in str(kept.detail)


def test_a_meter_of_suite_0_and_an_unknown_meter_are_refused(reach: Reach) -> None:
    with reach.realm.open(THIRD) as party:
        with pytest.raises(HsmkmError, match="no meter"):
            protect(party, "4D4D4D0000000099", Wanted(ENERGY), reach.file("none.apdu"))
        with pytest.raises(InputError, match="unknown key"):
            protect(party, TITLE, Wanted(ENERGY, "identified"), reach.file("none.apdu"))


@contextmanager
def registered(realm: Realm) -> Iterator[Party]:
    join(realm, THIRD)
    with realm.open("utility") as party:
        yield party


def test_a_party_is_introduced_once(realm: Realm) -> None:
    with delivered(realm, 1) as reach, registered(realm) as party:
        before = len(reach.line.state.certificates)
        done = introduce(party, TITLE, other=THIRD)
        assert [item.profile for item in done] == [f"{THIRD} digital-signature", f"{THIRD} key-agreement"]
        assert introduce(party, TITLE, other=THIRD) == []
        assert introduce(party, TITLE) == [], "the factory introduced the utility"
        assert len(reach.line.state.certificates) == before + 2
        with pytest.raises(RefusedError, match="no party"):
            introduce(party, TITLE, other="nobody")
