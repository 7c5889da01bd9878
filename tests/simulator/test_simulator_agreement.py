"""key_agreement with the virtual meter, its faults, and the way back; enrolment of the meter's own certificates."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.dlms import agreement, axdr, certificates, security_setup
from hsmkm.dlms.agreement import GBCS_PREFIX, AlgorithmIds, PublicShare
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.certificates import ByEntity, BySerial, CertificateEntity, CertificateType, Identification
from hsmkm.dlms.channel import Form
from hsmkm.dlms.events import Associated, Refused, Result
from hsmkm.dlms.general_keys import KeyChoice
from hsmkm.dlms.security_setup import Attribute, KeyTransfer, Method
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite, SystemTitle
from hsmkm.simulator import state as state_file
from hsmkm.simulator.behaviour import Activation, DroppedError, Fault
from hsmkm.simulator.key_pairs import SoftwareSigner, SoftwareVerifier, derive, generate, point_of, public_of
from hsmkm.simulator.keys import SoftwareKeys
from hsmkm.simulator.meter import ACTIVE_ENERGY
from tests.simulator.dlms_realm import (
    AGREEMENT,
    CLIENT,
    METER,
    SIGNATURE,
    TLS,
    Authority,
    Realm,
    Wire,
    realm,
)

SUITES = [SecuritySuite.SUITE_1, SecuritySuite.SUITE_2]
SUITE_1 = SUITES[0]
ENERGY = Result(axdr.double_long_unsigned(123_456))
NEW_KEYS = [KeyId.GUEK, KeyId.GAK, KeyId.GBEK, KeyId.MASTER]


def associated(made: Realm, **changes: object) -> Wire:
    wire = made.wire(**changes)
    assert isinstance(wire.associate(), Associated)
    return wire


def invoke(wire: Wire, method: Method, data: Data) -> Data | None:
    event = wire.drive(wire.association.action(security_setup.method(method), data))
    assert isinstance(event, Result), event
    return event.data


def refuses(wire: Wire, method: Method, data: Data) -> int:
    event = wire.drive(wire.association.action(security_setup.method(method), data))
    assert isinstance(event, Refused)
    assert event.authenticated
    return event.code


class Offer:
    """The client's half of a key_agreement."""

    def __init__(self, made: Realm, key_id: KeyId, algorithms: AlgorithmIds | None = None) -> None:
        self.made, self.key_id = made, key_id
        self.algorithms = algorithms or made.algorithms
        self.pair = generate(made.suite)
        point = point_of(self.pair.public_key())
        self.share = PublicShare.sign(made.suite, key_id, point, SoftwareSigner(made.client_keys[SIGNATURE]))

    @property
    def data(self) -> Data:
        return agreement.encode_key_agreement([self.share])

    def finish(self, answer: Data | None) -> bytes:
        assert answer is not None
        suite = self.made.suite
        (share,) = agreement.decode_key_agreement(suite, answer)
        assert share.key_id is self.key_id
        share.check(suite, SoftwareVerifier(self.made.meter_public(SIGNATURE)))
        info = agreement.ephemeral_info(self.algorithms.of(suite, self.key_id), CLIENT, METER)
        return derive(suite, self.pair, public_of(suite, share.point), info)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("key_id", NEW_KEYS)
@pytest.mark.parametrize("algorithms", [AlgorithmIds(), AlgorithmIds(GBCS_PREFIX), AlgorithmIds(wrap_for_master=True)])
def test_each_key_is_agreed_on(suite: SecuritySuite, key_id: KeyId, algorithms: AlgorithmIds) -> None:
    made = realm(suite, algorithms=algorithms)
    wire, offer = associated(made), Offer(made, key_id)
    key = offer.finish(invoke(wire, Method.KEY_AGREEMENT, offer.data))
    wire.drive(wire.association.release())
    assert made.key(key_id) == key
    again = associated(made)
    assert again.drive(again.association.get(ACTIVE_ENERGY)) == ENERGY


@pytest.mark.parametrize("activate", list(Activation))
def test_the_other_algorithm_gives_another_key(activate: Activation) -> None:
    made = realm(SUITE_1, algorithms=AlgorithmIds(GBCS_PREFIX), activate=activate)
    old = made.key(KeyId.GUEK)
    wire, offer = associated(made), Offer(made, KeyId.GUEK, AlgorithmIds())
    answer = invoke(wire, Method.KEY_AGREEMENT, offer.data)
    wire.drive(wire.association.release())
    tried = offer.finish(answer)
    offer.algorithms = offer.algorithms.other()
    for key, works in ((tried, False), (old, False), (offer.finish(answer), True)):
        event = made.wire(key=SoftwareKeys(key, made.key(KeyId.GAK))).associate()
        assert isinstance(event, Associated) == works


def test_a_forged_share_changes_nothing() -> None:
    made = realm(SUITE_1)
    before = dict(made.state.keys)
    wire, share = associated(made), Offer(made, KeyId.GUEK).share
    other = point_of(generate(SUITE_1).public_key())
    for forged in (
        PublicShare(KeyId.GAK, share.point, share.signature),
        PublicShare(KeyId.GUEK, other, share.signature),
        PublicShare(KeyId.GUEK, bytes(64), share.signature),
        PublicShare(KeyId.GUEK, share.point, bytes(64)),
    ):
        assert refuses(wire, Method.KEY_AGREEMENT, agreement.encode_key_agreement([forged])) == 250
    assert refuses(wire, Method.KEY_AGREEMENT, axdr.enum(0)) == 250
    assert made.state.keys == before


def test_version_0_and_suite_0_know_nothing_of_it() -> None:
    made = realm(SUITE_1, version=0)
    wire = associated(made)
    for method in list(Method)[2:]:
        assert refuses(wire, method, axdr.enum(0)) == 3
    wire = associated(realm(SecuritySuite.SUITE_0))
    for method in list(Method)[3:]:
        assert refuses(wire, method, axdr.enum(0)) == 3


@pytest.mark.parametrize(
    ("fault", "answers", "changes"),
    [
        (Fault.REJECT, False, False),
        (Fault.DROP_BEFORE, None, False),
        (Fault.DROP_AFTER, None, True),
        (Fault.LIE, True, False),
        (Fault.FIRST_ONLY, True, True),
    ],
)
def test_faults(fault: Fault, *, answers: bool | None, changes: bool) -> None:
    made = realm(SUITE_1, fault=fault)
    before = made.key(KeyId.GUEK)
    wire, offer = associated(made), Offer(made, KeyId.GUEK)
    if answers is None:
        with pytest.raises(DroppedError):
            invoke(wire, Method.KEY_AGREEMENT, offer.data)
    elif answers:
        offer.finish(invoke(wire, Method.KEY_AGREEMENT, offer.data))
    else:
        assert refuses(wire, Method.KEY_AGREEMENT, offer.data) == 2
    wire.session.close()
    assert (made.key(KeyId.GUEK) != before) == changes


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("choice", [KeyChoice.WRAPPED, KeyChoice.ONE_PASS, KeyChoice.STATIC])
@pytest.mark.parametrize("mechanism", [Mechanism.HLS_SHA256, Mechanism.HLS_ECDSA])
def test_the_way_back_after_a_lost_answer(suite: SecuritySuite, choice: KeyChoice, mechanism: Mechanism) -> None:
    made = realm(suite, fault=Fault.DROP_AFTER)
    lost = made.settings()
    wire, offer = associated(made), Offer(made, KeyId.GUEK)
    with pytest.raises(DroppedError):
        invoke(wire, Method.KEY_AGREEMENT, offer.data)
    assert isinstance(Wire(made.settings(key=lost.key), made.meter).associate(), Refused)
    source = made.general_keys(choice)
    source.guek = None
    back = associated(made, mechanism=mechanism, key=None, form=Form.GENERAL, key_source=source)
    key = bytes(range(suite.key_octets))
    entry = KeyTransfer(KeyId.GUEK, aes_key_wrap(made.key(KeyId.MASTER), key))
    invoke(back, Method.KEY_TRANSFER, security_setup.encode_key_transfer([entry]))
    back.drive(back.association.release())
    again = associated(made, key=SoftwareKeys(key, made.key(KeyId.GAK)))
    assert again.drive(again.association.get(ACTIVE_ENERGY)) == ENERGY


def issue(made: Realm, request: bytes, kind: CertificateType) -> bytes:
    csr = x509.load_der_x509_csr(request)
    assert csr.is_signature_valid
    assert not list(csr.attributes)
    public = csr.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    return made.authority.issue(METER, public, kind)


def wanted(kind: CertificateType, entity: CertificateEntity = CertificateEntity.SERVER) -> Data:
    title = METER if entity is CertificateEntity.SERVER else CLIENT
    return certificates.encode_identification(ByEntity(entity, kind, title.octets))


@pytest.mark.parametrize("suite", SUITES)
def test_a_meter_enrols_from_nothing_to_three_certificates(suite: SecuritySuite, tmp_path: Path) -> None:
    made = realm(suite)
    wire = made.wire(verifier=None, signer=None)
    made.state.key_pairs.clear()
    made.state.certificates.clear()
    wire.associate()
    for kind in (SIGNATURE, AGREEMENT, TLS):
        assert refuses(wire, Method.GENERATE_CERTIFICATE_REQUEST, certificates.encode_type(kind)) == 250
        invoke(wire, Method.GENERATE_KEY_PAIR, certificates.encode_type(kind))
        request = invoke(wire, Method.GENERATE_CERTIFICATE_REQUEST, certificates.encode_type(kind))
        assert request is not None
        path = tmp_path / "request.der"
        path.write_bytes(request.octets())
        command = ["openssl", "req", "-verify", "-noout", "-inform", "DER", "-in", str(path)]
        assert b"OK" in subprocess.run(command, capture_output=True, check=True).stderr
        assert kind not in made.state.key_pairs
        der = issue(made, request.octets(), kind)
        invoke(wire, Method.IMPORT_CERTIFICATE, axdr.octet_string(der))
        exported = invoke(wire, Method.EXPORT_CERTIFICATE, wanted(kind))
        assert exported is not None
        assert exported.octets() == der
    event = wire.drive(wire.association.get(security_setup.attribute(Attribute.CERTIFICATES)))
    assert isinstance(event, Result)
    assert event.data is not None
    infos = certificates.decode_certificates(event.data)
    assert [info.kind for info in infos] == [CertificateType.OTHER, SIGNATURE, AGREEMENT, TLS]
    restored = state_file.decode(state_file.encode(made.state))
    assert restored.certificates == made.state.certificates
    assert restored.key_pairs.keys() == made.state.key_pairs.keys()


def test_a_certificate_is_also_named_by_its_serial_number() -> None:
    made = realm(SUITE_1)
    wire = associated(made)
    der = made.state.certificates[0]
    certificate = x509.load_der_x509_certificate(der)
    issuer, serial = certificate.issuer.public_bytes(), certificate.serial_number
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    named: list[Identification] = [BySerial(octets, issuer), BySerial(bytes([2, len(octets)]) + octets, issuer)]
    for one in named:
        exported = invoke(wire, Method.EXPORT_CERTIFICATE, certificates.encode_identification(one))
        assert exported is not None
        assert exported.octets() == der
    missing = certificates.encode_identification(BySerial(octets + b"\0", issuer))
    assert refuses(wire, Method.EXPORT_CERTIFICATE, missing) == 250


def test_a_removed_certificate_is_used_no_more() -> None:
    made = realm(SUITE_1)
    wire = associated(made)
    invoke(wire, Method.REMOVE_CERTIFICATE, wanted(SIGNATURE, CertificateEntity.CLIENT))
    assert refuses(wire, Method.REMOVE_CERTIFICATE, wanted(SIGNATURE, CertificateEntity.CLIENT)) == 250
    assert refuses(wire, Method.KEY_AGREEMENT, Offer(made, KeyId.GUEK).data) == 250
    assert isinstance(made.wire(mechanism=Mechanism.HLS_ECDSA).associate(), Refused)


def test_a_trust_anchor_is_exported_but_neither_removed_nor_imported() -> None:
    made = realm(SUITE_1)
    wire = associated(made)
    anchor = ByEntity(CertificateEntity.CERTIFICATION_AUTHORITY, CertificateType.OTHER, b"")
    data = certificates.encode_identification(anchor)
    exported = invoke(wire, Method.EXPORT_CERTIFICATE, data)
    assert exported is not None
    assert exported.octets() == made.authority.der
    assert refuses(wire, Method.REMOVE_CERTIFICATE, data) == 250
    stranger = Authority(SUITE_1, "stranger")
    assert refuses(wire, Method.IMPORT_CERTIFICATE, axdr.octet_string(stranger.der)) == 250


def test_certificates_that_must_not_be_used_are_not_imported() -> None:
    made = realm(SUITE_1)
    wire, authority = associated(made), made.authority
    public = generate(SUITE_1).public_key()
    long, own = generate(SecuritySuite.SUITE_2).public_key(), made.meter_public(SIGNATURE)
    agreeing = made.client_keys[AGREEMENT].public_key()
    for der in (
        authority.issue(CLIENT, public, SIGNATURE, days=(-3, -1)),
        authority.issue(CLIENT, public, SIGNATURE, days=(1, 3)),
        authority.issue("somebody", public, SIGNATURE),
        authority.issue(CLIENT, long, SIGNATURE),
        authority.issue(METER, public, SIGNATURE),
        authority.issue(METER, own, AGREEMENT),
        authority.issue(CLIENT, agreeing, SIGNATURE),
        Authority(SUITE_1).issue(CLIENT, public, SIGNATURE),
        b"",
        b"0\x03\x02\x01\x01",
        made.authority.certificate.public_bytes(Encoding.PEM),
    ):
        assert refuses(wire, Method.IMPORT_CERTIFICATE, axdr.octet_string(der)) == 250
    renewed = authority.issue(CLIENT, public, SIGNATURE)
    invoke(wire, Method.IMPORT_CERTIFICATE, axdr.octet_string(renewed))
    assert made.state.certificates.count(renewed) == 1
    assert len(made.state.certificates) == 6


def test_a_third_title_is_no_other_than_its_own() -> None:
    made = realm(SUITE_1)
    store = made.meter.security_setup.certificates
    assert store.public_key(SystemTitle.parse("4D4D4D00000000FF"), SIGNATURE) is None
    assert store.public_key(CLIENT, TLS) is None
    assert store.public_key(CLIENT, SIGNATURE) == made.client_keys[SIGNATURE].public_key()
