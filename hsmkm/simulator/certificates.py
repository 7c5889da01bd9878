"""The certificates and key pairs of a virtual meter: enrolment, import, export, removal, and whose key is whose.

An imported certificate has to be valid now, on a curve of the suite, and signed by a trust anchor or by an imported
certification authority. Trust anchors can be exported, but neither imported nor removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hsmkm.dlms.certificates import (
    ByEntity,
    CertificateEntity,
    CertificateInfo,
    CertificateType,
    Identification,
)
from hsmkm.dlms.types import SystemTitle
from hsmkm.errors import InputError, RefusedError
from hsmkm.simulator.key_pairs import curve_of, digest_of, generate, point_of
from hsmkm.simulator.state import MeterState

_INTEGER = 0x02


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate as the meter files it."""

    certificate: x509.Certificate
    entity: CertificateEntity
    kind: CertificateType
    title: bytes
    anchor: bool

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        """The certified key; RefusedError unless it is on an elliptic curve."""
        key = self.certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise RefusedError("the certified key is not on an elliptic curve")
        return key

    @property
    def place(self) -> tuple[CertificateEntity, CertificateType, bytes]:
        """Where it is filed; a newer one of the same place replaces it."""
        return self.entity, self.kind, self.title

    def info(self) -> CertificateInfo:
        """What attribute 6 tells of it."""
        certificate = self.certificate
        names = certificate.issuer.public_bytes(), certificate.subject.public_bytes()
        serial = certificate.serial_number
        octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
        return CertificateInfo(self.entity, self.kind, octets, *names, _alternative_name(certificate))


class Certificates:
    """What the state holds of certificates and key pairs; RefusedError tells why the meter declines."""

    def __init__(self, state: MeterState, now: Callable[[], datetime]) -> None:
        self._state = state
        self._now = now

    def held(self) -> Iterator[Held]:
        """Every certificate, the trust anchors first."""
        for der in self._state.anchors:
            yield self._filed(der, anchor=True)
        for der in self._state.certificates:
            yield self._filed(der, anchor=False)

    def public_key(self, title: SystemTitle, kind: CertificateType) -> ec.EllipticCurvePublicKey | None:
        """The key of another party by its system title, while its certificate is valid."""
        for held in self.held():
            if held.title == title.octets and held.kind is kind and self._valid(held.certificate):
                return held.public
        return None

    def generate_key_pair(self, kind: CertificateType) -> None:
        """Make a key pair, which is used once its certificate is imported."""
        if kind is CertificateType.OTHER:
            raise RefusedError("there is no key pair of this type")
        self._state.new_key_pairs[kind] = generate(self._state.suite)

    def request(self, kind: CertificateType) -> bytes:
        """Give a PKCS#10 request: the system title as common name, and no attributes."""
        pair = self._state.new_key_pairs.get(kind) or self._state.key_pairs.get(kind)
        if pair is None:
            raise RefusedError("there is no key pair of this type", hint="generate it first")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(self._state.system_title))])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        return builder.sign(pair, digest_of(pair.curve)).public_bytes(Encoding.DER)

    def take(self, der: bytes) -> None:
        """Import a certificate, or refuse it."""
        held = self._filed(der, anchor=False)
        if not self._valid(held.certificate):
            raise RefusedError("the certificate is not valid now")
        self._check_issuer(held.certificate)
        if held.entity is not CertificateEntity.CERTIFICATION_AUTHORITY:
            self._check_leaf(held)
        if held.entity is CertificateEntity.SERVER:
            self._adopt(held)
        kept = [other for other in self.held() if not other.anchor and other.place != held.place]
        if held.entity is CertificateEntity.CERTIFICATION_AUTHORITY:
            kept = [other for other in self.held() if not other.anchor and other.certificate != held.certificate]
        self._state.certificates[:] = [_der(other.certificate) for other in kept] + [der]

    def export(self, wanted: Identification) -> bytes:
        """Give a certificate."""
        return _der(self._find(wanted).certificate)

    def remove(self, wanted: Identification) -> None:
        """Forget a certificate; a trust anchor stays."""
        found = self._find(wanted)
        if found.anchor:
            raise RefusedError("a trust anchor is not removed over the wire")
        self._state.certificates.remove(_der(found.certificate))

    def _find(self, wanted: Identification) -> Held:
        for held in self.held():
            if isinstance(wanted, ByEntity):
                if held.place == (wanted.entity, wanted.kind, wanted.system_title):
                    return held
            elif _number(wanted.serial) == held.certificate.serial_number and wanted.issuer == held.info().issuer:
                return held
        raise RefusedError("there is no such certificate")

    def _filed(self, der: bytes, *, anchor: bool) -> Held:
        try:
            certificate = x509.load_der_x509_certificate(der)
            authority = _is_authority(certificate)
            usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
            raise RefusedError("this is not a certificate of the profile") from None
        if authority:
            return Held(certificate, CertificateEntity.CERTIFICATION_AUTHORITY, CertificateType.OTHER, b"", anchor)
        title = _title(certificate)
        own = title == self._state.system_title
        entity = CertificateEntity.SERVER if own else CertificateEntity.CLIENT
        return Held(certificate, entity, _kind(usage), title.octets, anchor)

    def _valid(self, certificate: x509.Certificate) -> bool:
        return certificate.not_valid_before_utc <= self._now() <= certificate.not_valid_after_utc

    def _check_issuer(self, certificate: x509.Certificate) -> None:
        for held in self.held():
            if held.entity is CertificateEntity.CERTIFICATION_AUTHORITY and self._valid(held.certificate):
                try:
                    certificate.verify_directly_issued_by(held.certificate)
                except (ValueError, TypeError, InvalidSignature):
                    continue
                return
        raise RefusedError("no trust anchor or certification authority here signed the certificate")

    def _check_leaf(self, held: Held) -> None:
        if held.public.curve.name != curve_of(self._state.suite).name:
            raise RefusedError("the certified key is not on the curve of the security suite")
        for other in self.held():
            same = other.kind is not held.kind and point_of(other.public) == point_of(held.public)
            if same and CertificateEntity.CERTIFICATION_AUTHORITY not in (other.entity, held.entity):
                raise RefusedError("the key is already certified for another use")

    def _adopt(self, held: Held) -> None:
        state, wanted = self._state, point_of(held.public)
        waiting, current = state.new_key_pairs.get(held.kind), state.key_pairs.get(held.kind)
        if waiting is not None and point_of(waiting.public_key()) == wanted:
            state.key_pairs[held.kind] = state.new_key_pairs.pop(held.kind)
        elif current is None or point_of(current.public_key()) != wanted:
            raise RefusedError("the certified key is not one of the meter's")


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _number(serial: bytes) -> int:
    """Read a serial number, also one that comes as a whole DER INTEGER."""
    if len(serial) > 2 and serial[0] == _INTEGER and serial[1] == len(serial) - 2:  # noqa: PLR2004 - tag and length
        serial = serial[2:]
    return int.from_bytes(serial, "big")


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _kind(usage: x509.KeyUsage) -> CertificateType:
    kinds = {
        (True, False): CertificateType.DIGITAL_SIGNATURE,
        (False, True): CertificateType.KEY_AGREEMENT,
        (True, True): CertificateType.TLS,
    }
    return kinds.get((usage.digital_signature, usage.key_agreement), CertificateType.OTHER)


def _title(certificate: x509.Certificate) -> SystemTitle:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        (name,) = names
        return SystemTitle.parse(str(name.value))
    except (ValueError, InputError):
        raise RefusedError("the subject of the certificate is not a system title") from None


def _alternative_name(certificate: x509.Certificate) -> bytes:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return b""
    return found.value.public_bytes()
