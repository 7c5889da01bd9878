"""A client against the virtual meter: every suite, mechanism, form and policy."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import axdr, security_setup
from hsmkm.dlms.acse import parse_request
from hsmkm.dlms.channel import Channel, Form
from hsmkm.dlms.events import Associated, Forwarded, RefusalKind, Refused, Result
from hsmkm.dlms.general import AgreedKey, Header, KeyParameters, WrappedKey
from hsmkm.dlms.general_keys import GeneralKeys, KeyChoice
from hsmkm.dlms.protection import Protection, SecurityPolicy
from hsmkm.dlms.security_setup import Method
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite
from hsmkm.dlms.xdlms import GetRequest, parse_initiate_request, parse_response
from hsmkm.errors import HsmkmError, IntegrityError, RefusedError
from hsmkm.simulator.behaviour import DroppedError
from hsmkm.simulator.key_pairs import SoftwareSigner, SoftwareVerifier, generate, point_of
from hsmkm.simulator.keys import SoftwareDedicatedKey, SoftwareSecret
from hsmkm.simulator.meter import ACTIVE_ENERGY, LONG_VALUE, PROFILE_OCTETS
from tests.simulator.dlms_realm import METER, SIGNATURE, THIRD, Realm, Wire, realm

SUITE_0, SUITE_1, SUITE_2 = SecuritySuite
BOTH, SIGNED = Protection.CIPHERED, Protection.SIGNED
ENERGY = Result(axdr.double_long_unsigned(123_456))
MECHANISMS = [Mechanism.HLS_MD5, Mechanism.HLS_SHA1, Mechanism.HLS_GMAC, Mechanism.HLS_SHA256, Mechanism.HLS_ECDSA]
CHOICES = [KeyChoice.GUEK, KeyChoice.GBEK, KeyChoice.WRAPPED, KeyChoice.ONE_PASS, KeyChoice.STATIC]


def reads(wire: Wire) -> None:
    assert isinstance(wire.associate(), Associated)
    assert wire.drive(wire.association.get(ACTIVE_ENERGY)) == ENERGY
    long = wire.drive(wire.association.get(LONG_VALUE))
    assert isinstance(long, Result)
    assert long.data is not None
    assert len(long.data.octets()) == PROFILE_OCTETS


def dedicated(made: Realm) -> SoftwareDedicatedKey:
    return SoftwareDedicatedKey(secrets.token_bytes(made.suite.key_octets), made.key(KeyId.GAK))


@pytest.mark.parametrize("suite", list(SecuritySuite))
@pytest.mark.parametrize("mechanism", [Mechanism.LLS, *MECHANISMS])
def test_every_mechanism_opens_a_ciphered_association(suite: SecuritySuite, mechanism: Mechanism) -> None:
    made = realm(suite)
    if mechanism is Mechanism.HLS_ECDSA and suite is SUITE_0:
        with pytest.raises(RefusedError):
            made.settings(mechanism=mechanism)
        return
    reads(made.wire(mechanism=mechanism))


@pytest.mark.parametrize("mechanism", [Mechanism.NONE, Mechanism.LLS, *(set(MECHANISMS) - {Mechanism.HLS_GMAC})])
def test_mechanisms_without_ciphering_where_the_policy_allows_it(mechanism: Mechanism) -> None:
    plain = {"mechanism": mechanism, "key": None}
    reads(realm(SUITE_1, policy=0).wire(**plain))
    refused = realm(SUITE_1).wire(**plain).associate()
    assert isinstance(refused, Refused)
    assert (refused.kind, refused.code) == (RefusalKind.REJECTED, 2)


def test_a_wrong_password_or_secret_is_refused() -> None:
    made = realm(SUITE_1)
    wrong = SoftwareSecret(b"wrong")
    event = made.wire(mechanism=Mechanism.LLS, password=wrong).associate()
    assert isinstance(event, Refused)
    assert event.reason == "association rejected: authentication failure"
    for mechanism in (Mechanism.HLS_MD5, Mechanism.HLS_SHA1, Mechanism.HLS_SHA256):
        event = made.wire(mechanism=mechanism, secret=wrong).associate()
        assert isinstance(event, Refused)
        assert event.kind is RefusalKind.ACTION
    stranger = SoftwareSigner(generate(SUITE_1))
    event = made.wire(mechanism=Mechanism.HLS_ECDSA, signer=stranger).associate()
    assert isinstance(event, Refused)


@pytest.mark.parametrize("mechanism", [Mechanism.HLS_SHA256, Mechanism.HLS_ECDSA])
def test_a_meter_without_the_secret_does_not_deceive_the_client(mechanism: Mechanism) -> None:
    made = realm(SUITE_1)
    verifier = SoftwareVerifier(generate(SUITE_1).public_key())
    wire = made.wire(mechanism=mechanism, verifier=verifier)
    if mechanism is Mechanism.HLS_SHA256:
        wire = made.wire(mechanism=mechanism)
        wire.session._proof = None
        event = wire.step(wire.association.associate())
        made.state.secret = b"another"
        wire.session._proof = made.meter.proof(mechanism, wire.session._client, wire.session._unicast)
        wire.session._proved = lambda *_: True  # type: ignore[method-assign] # a meter that only pretends to check
        with pytest.raises(IntegrityError):
            wire.step(event.apdu)  # type: ignore[union-attr] # the first step asks for the third
        return
    with pytest.raises(IntegrityError):
        wire.associate()


def test_weak_digests_are_refused_unless_allowed() -> None:
    made = realm(SUITE_0)
    for mechanism in (Mechanism.HLS_MD5, Mechanism.HLS_SHA1):
        with pytest.raises(RefusedError, match="broken digest"):
            made.settings(mechanism=mechanism, allow_weak_digests=False)


@pytest.mark.parametrize("suite", list(SecuritySuite))
@pytest.mark.parametrize("form", [Form.GLOBAL, Form.DEDICATED, Form.GENERAL_GLOBAL, Form.GENERAL_DEDICATED])
def test_forms_under_global_and_dedicated_keys(suite: SecuritySuite, form: Form) -> None:
    made = realm(suite)
    wire = made.wire(form=form, dedicated=dedicated(made))
    reads(wire)
    tag = {Form.GLOBAL: 0xC8, Form.DEDICATED: 0xD0, Form.GENERAL_GLOBAL: 0xDB, Form.GENERAL_DEDICATED: 0xDC}[form]
    assert wire.seen[-2][0] == tag


@pytest.mark.parametrize("suite", [SUITE_1, SUITE_2])
@pytest.mark.parametrize("choice", CHOICES)
def test_general_ciphering_under_every_kind_of_key(suite: SecuritySuite, choice: KeyChoice) -> None:
    made = realm(suite)
    wire = made.wire(form=Form.GENERAL, key_source=made.general_keys(choice))
    reads(wire)
    assert wire.seen[-2][0] == wire.seen[-1][0] == 0xDD


@pytest.mark.parametrize("suite", [SUITE_1, SUITE_2])
@pytest.mark.parametrize("form", [Form.GLOBAL, Form.DEDICATED, Form.GENERAL_GLOBAL, Form.GENERAL])
@pytest.mark.parametrize("value", [0x90, 0xB4, 0xD8, 0xFC])
def test_signed_requests_and_answers(suite: SecuritySuite, form: Form, value: int) -> None:
    made = realm(suite, policy=value)
    source = made.general_keys(KeyChoice.ONE_PASS)
    wire = made.wire(form=form, policy=SecurityPolicy.parse(1, value), dedicated=dedicated(made), key_source=source)
    reads(wire)
    assert wire.seen[-2][0] == wire.seen[-1][0] == 0xDF


@pytest.mark.parametrize("suite", list(SecuritySuite))
@pytest.mark.parametrize("value", range(4))
def test_policies_of_version_0(suite: SecuritySuite, value: int) -> None:
    made = realm(suite, version=0, policy=value)
    reads(made.wire(policy=SecurityPolicy.parse(0, value)))


@pytest.mark.parametrize("demanded", [0x04, 0x08, 0x10, 0x0C, 0x14, 0x18, 0x1C])
@pytest.mark.parametrize("given_", [0x00, 0x04, 0x08, 0x10, 0x0C, 0x14, 0x18, 0x1C])
def test_requests_with_less_than_the_policy_demands_are_refused(demanded: int, given_: int) -> None:
    made = realm(SUITE_1, policy=demanded)
    policy = SecurityPolicy.parse(1, given_)
    wire = made.wire(policy=policy)
    event = wire.associate()
    if policy.request.covers(made.state.demands.request):
        assert isinstance(event, Associated)
    else:
        assert isinstance(event, Refused)


@pytest.mark.parametrize("wanted", [0x20, 0x40, 0x80, 0x60, 0xA0, 0xE0])
def test_answers_with_less_than_the_policy_demands_are_refused(wanted: int) -> None:
    made = realm(SUITE_1, policy=0)
    wire = made.wire(policy=SecurityPolicy.parse(1, wanted), mechanism=Mechanism.HLS_ECDSA)
    try:
        event = wire.associate()
    except IntegrityError as error:
        assert "less than the policy demands" in error.message  # noqa: PT017 - a signed request is answered signed
    else:
        assert isinstance(event, Associated)
        assert wanted == 0x80


def test_an_apdu_of_another_suite_is_refused_both_ways() -> None:
    made = realm(SUITE_1)
    assert isinstance(made.wire(suite=SUITE_0).associate(), Refused)
    wire = made.wire()
    wire.associate()
    wire.back = lambda answer: answer[:2] + bytes([answer[2] & 0xF0]) + answer[3:]
    with pytest.raises(IntegrityError, match="another security suite"):
        wire.drive(wire.association.get(ACTIVE_ENERGY))


@pytest.mark.parametrize("form", list(Form))
def test_replayed_requests_and_answers_are_refused(form: Form) -> None:
    made = realm(SUITE_1)
    source = made.general_keys(KeyChoice.WRAPPED)
    wire = made.wire(form=form, key_source=source, dedicated=dedicated(made))
    wire.associate()
    wire.drive(wire.association.get(ACTIVE_ENERGY))
    request, answer = wire.seen[-2:]
    assert wire.session.receive(request, 1)[0] == 0xD8
    wire.back = lambda _: answer
    with pytest.raises(IntegrityError):
        wire.drive(wire.association.get(ACTIVE_ENERGY))


@pytest.mark.parametrize("value", [0x90, 0x08 | 0x40])
def test_replays_are_refused_without_authentication_tags_too(value: int) -> None:
    made = realm(SUITE_1, policy=value)
    wire = made.wire(policy=SecurityPolicy.parse(1, value))
    wire.associate()
    wire.drive(wire.association.get(ACTIVE_ENERGY))
    request, answer = wire.seen[-2:]
    assert wire.session.receive(request, 1)[0] == 0xD8
    wire.back = lambda _: answer
    with pytest.raises(IntegrityError):
        wire.drive(wire.association.get(ACTIVE_ENERGY))


def test_a_forged_counter_without_a_tag_does_not_move_the_durable_one() -> None:
    made = realm(SUITE_1, policy=0x48)
    wire = made.wire(policy=SecurityPolicy.parse(1, 0x48))
    wire.associate()
    before = made.received.lowest
    wire.back = lambda answer: answer[:3] + b"\xff\xff\xff\xfe" + answer[7:]
    with pytest.raises(HsmkmError):
        wire.drive(wire.association.get(ACTIVE_ENERGY))
    assert made.received.lowest == before


@pytest.mark.parametrize("form", [*Form, None])
@pytest.mark.parametrize("suite", [SUITE_1, SUITE_2])
def test_any_flipped_octet_of_an_answer_is_found(form: Form | None, suite: SecuritySuite) -> None:
    made = realm(suite, policy=0xFC if form is None else None)
    policy = made.state.demands
    source = made.general_keys(KeyChoice.ONE_PASS)
    wire = made.wire(form=form or Form.GLOBAL, policy=policy, key_source=source, dedicated=dedicated(made))
    wire.associate()
    request = wire.association.get(ACTIVE_ENERGY)
    answer = wire.session.receive(request, 1)
    channel = wire.association._channel
    assert channel is not None
    channel.general = None if form is not Form.GENERAL else source
    for place in {*range(0, len(answer), 7), len(answer) - 1}:
        flipped = answer[:place] + bytes([answer[place] ^ 1]) + answer[place + 1 :]
        wire.association._state = type(wire.association.state).GETTING
        try:
            event = wire.association.receive(flipped)
        except HsmkmError:
            continue
        assert not isinstance(event, Result)


def test_a_weak_request_for_key_management_is_denied() -> None:
    made = realm(SUITE_1, policy=0)
    wire = made.wire(mechanism=Mechanism.HLS_ECDSA, key=None)
    wire.associate()
    event = wire.drive(wire.association.action(security_setup.method(Method.SECURITY_ACTIVATE), axdr.enum(0x6C)))
    assert event == Refused("read-write denied", RefusalKind.ACTION, 3, authenticated=False)


def test_a_policy_is_only_strengthened() -> None:
    made = realm(SUITE_1, policy=0x24)
    wire = made.wire()
    wire.associate()
    activate = security_setup.method(Method.SECURITY_ACTIVATE)
    assert wire.drive(wire.association.action(activate, axdr.enum(0x6C))) == Result(None)
    assert made.state.policy == 0x6C
    for value in (0x24, 0, 0x01):
        assert isinstance(wire.drive(wire.association.action(activate, axdr.enum(value))), Refused)
    assert made.state.policy == 0x6C


def third_party(made: Realm, choice: KeyChoice) -> Channel:
    keys = GeneralKeys(suite=made.suite, choice=choice, agreement=made.agreement(made.third_keys))
    return Channel(
        suite=made.suite,
        own=THIRD,
        peer=METER,
        general=keys,
        signer=SoftwareSigner(made.third_keys[SIGNATURE]),
        verifier=SoftwareVerifier(made.meter_public(SIGNATURE)),
    )


@pytest.mark.parametrize("suite", [SUITE_1, SUITE_2])
@pytest.mark.parametrize("choice", [KeyChoice.ONE_PASS, KeyChoice.STATIC])
@pytest.mark.parametrize("signed", [Protection.NONE, SIGNED])
def test_a_third_party_reads_end_to_end(suite: SecuritySuite, choice: KeyChoice, signed: Protection) -> None:
    made = realm(suite)
    third, wire = third_party(made, choice), made.wire()
    wire.associate()
    header = Header((1).to_bytes(8, "big"), THIRD, METER)
    request = third.protect(GetRequest(1, ACTIVE_ENERGY).encode(), BOTH | signed, Form.GENERAL, header)
    event = wire.drive(wire.association.forward(request))
    assert isinstance(event, Forwarded)
    opened = third.unprotect(event.apdu)
    assert opened.protection == BOTH | signed
    assert parse_response(opened.apdu).data.value == 123_456  # type: ignore[union-attr] # a GET is answered with data
    assert wire.drive(wire.association.get(ACTIVE_ENERGY)) == ENERGY


def test_the_broker_can_neither_read_nor_alter_nor_replay() -> None:
    made = realm(SUITE_1)
    third, wire = third_party(made, KeyChoice.ONE_PASS), made.wire()
    wire.associate()
    header = Header((1).to_bytes(8, "big"), THIRD, METER)
    plain = GetRequest(1, ACTIVE_ENERGY).encode()
    request = third.protect(plain, BOTH, Form.GENERAL, header)
    assert plain[3:] not in request
    for place in (12, 40, 100, len(request) - 1):
        altered = request[:place] + bytes([request[place] ^ 1]) + request[place + 1 :]
        assert isinstance(wire.drive(wire.association.forward(altered)), Refused)
    event = wire.drive(wire.association.forward(request))
    assert isinstance(event, Forwarded)
    assert isinstance(wire.drive(wire.association.forward(request)), Refused)
    altered = event.apdu[:-1] + bytes([event.apdu[-1] ^ 1])
    with pytest.raises(IntegrityError):
        third.unprotect(altered)


def test_traffic_shows_no_plaintext() -> None:
    for suite in SecuritySuite:
        made = realm(suite)
        wire = made.wire(dedicated=(key := dedicated(made)), form=Form.DEDICATED)
        reads(wire)
        value = bytes(at & 0xFF for at in range(PROFILE_OCTETS))
        traffic = b"".join(wire.seen)
        assert key.reveal() not in traffic
        assert not any(value[at : at + 8] in traffic for at in range(256))


@given(st.binary(max_size=120))
def test_a_meter_answers_or_drops_whatever_an_associated_client_sends(octets: bytes) -> None:
    made = REALM
    wire = made.wire()
    wire.associate()
    head = Header(b"\1", wire.association.settings.client_title, METER).encode()  # type: ignore[arg-type] # it has one
    third = Header(b"\1", THIRD, METER).encode()
    for start in (b"", b"\xdb\x08", b"\xdd" + head, b"\xdf" + head, b"\xdd" + third, b"\xd0\x20\x31", b"\xcb\x20\x31"):
        try:
            assert wire.session.receive(start + octets, 1)
        except DroppedError:
            continue


@given(st.binary(max_size=120))
def test_hostile_answers_in_every_form_raise_errors_of_ours(octets: bytes) -> None:
    for form in Form:
        source = REALM.general_keys(KeyChoice.ONE_PASS)
        wire = REALM.wire(form=form, key_source=source, dedicated=dedicated(REALM))
        wire.associate()
        head = Header(b"\1", METER, wire.association.settings.client_title).encode()
        for start in (b"", b"\xdb\x08" + METER.octets, b"\xdd" + head, b"\xdf" + head, b"\xd4\x20\x31"):
            wire.association._state = type(wire.association.state).GETTING
            try:
                event = wire.association.receive(start + octets)
            except HsmkmError:
                continue
            assert isinstance(event, Refused)


REALM = realm(SUITE_1)


def test_a_meter_of_suite_0_opens_neither_signatures_nor_agreed_keys() -> None:
    made = realm(SUITE_0)
    wire = made.wire()
    wire.associate()
    client = wire.association.settings.client_title
    assert client is not None
    header = Header((1).to_bytes(8, "big"), client, METER).encode()
    for layer in (b"\xdf" + header + b"\1\xc0" + b"\x40" + bytes(64), b"\xdd" + header + b"\1\2\1\2\0\x05" + bytes(5)):
        assert wire.session.receive(layer, 1)[0] == 0xD8


def test_general_protection_is_proposed_where_it_is_used() -> None:
    made = realm(SUITE_1, policy=0)
    for policy, proposed in ((0x80, 0x400000), (0x00, 0)):
        wire = made.wire(policy=SecurityPolicy.parse(1, policy))
        initiate = parse_request(wire.association.associate()).initiate
        assert parse_initiate_request(initiate).conformance & 0x400000 == proposed


def test_keys_changed_over_another_connection_hold_for_all() -> None:
    made = realm(SUITE_1)
    first, second = made.wire(), made.wire()
    first.associate()
    second.associate()
    made.meter.activate({KeyId.GUEK: bytes(16)})
    first.session.sent()
    assert isinstance(first.drive(first.association.get(ACTIVE_ENERGY)), Refused)


def test_the_broadcast_key_gives_no_right_to_manage_keys() -> None:
    made = realm(SUITE_1, policy=0x04)
    wire = made.wire(form=Form.GENERAL, key_source=made.general_keys(KeyChoice.GBEK))
    wire.associate()
    event = wire.drive(wire.association.action(security_setup.method(Method.SECURITY_ACTIVATE), axdr.enum(0x6C)))
    assert event == Refused("read-write denied", RefusalKind.ACTION, 3, authenticated=True)
    assert made.state.policy == 0x04


def test_an_answer_under_the_broadcast_key_is_refused() -> None:
    made = realm(SUITE_1)
    meter, client = made.general_keys(KeyChoice.GBEK), made.general_keys(KeyChoice.GUEK)
    header = Header(b"\1", METER, made.settings().client_title)
    info, _ = meter.outgoing(header)
    with pytest.raises(IntegrityError, match="broadcast key"):
        client.incoming(header, info)


def test_a_wrapped_key_of_another_length_or_master_is_refused() -> None:
    made = realm(SUITE_1)
    keys = made.general_keys(KeyChoice.WRAPPED)
    header = Header(b"\1", METER, made.settings().client_title)
    for info in (WrappedKey(bytes(24)), WrappedKey(bytes(40)), WrappedKey(b""), WrappedKey(bytes(24), 1), None):
        with pytest.raises(IntegrityError):
            keys.incoming(header, info)


def test_agreed_keys_off_the_curve_or_unsigned_are_refused() -> None:
    made = realm(SUITE_1)
    keys = made.general_keys(KeyChoice.ONE_PASS)
    header = Header(b"\1", METER, made.settings().client_title)
    point = point_of(generate(SUITE_1).public_key())
    for data in (b"", bytes(128), point, point + bytes(64), point + b"\1" * 64, b"\1" * 128):
        with pytest.raises(IntegrityError):
            keys.incoming(header, AgreedKey(KeyParameters.ONE_PASS, data))
    with pytest.raises(IntegrityError, match="no data"):
        keys.incoming(header, AgreedKey(KeyParameters.STATIC, b"\1"))
