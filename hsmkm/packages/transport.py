"""How the package key travels: a KeyAgreeRecipientInfo in DER (RFC 5652 section 6.2.2, RFC 5753 section 3.1).

The sender makes an ephemeral EC key in its token and agrees on a key with the recipient's certified key
(dhSinglePass-stdDH-sha256kdf-scheme on P-256, sha384kdf on P-384); the agreed key wraps the package key (RFC 3394,
aes256-wrap). The derivation covers `ukm`, the digest of the package's header.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.errors import InputError, RefusedError
from hsmkm.pki.certificates import public_key
from hsmkm.pki.der import Reader, bit_string, element, octet_string, sequence
from hsmkm.token.agreement import agree_as_recipient, agree_as_sender
from hsmkm.token.keys import KeyHandle
from hsmkm.token.vault import Vault

_EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
_AES256_WRAP = bytes.fromhex("060960864801650304012d")
_SCHEMES = {"secp256r1": bytes.fromhex("06062b8104010b01"), "secp384r1": bytes.fromhex("06062b8104010b02")}
"""dhSinglePass-stdDH-sha256kdf-scheme 1.3.132.1.11.1 and its sibling with SHA-384 (RFC 5753 section 7.1.4)."""

_CURVES = {65: "secp256r1", 97: "secp384r1"}
"""The curve by the length of an uncompressed point in octets."""

_SEQUENCE, _INTEGER, _BIT_STRING, _OCTET_STRING = 0x30, 0x02, 0x03, 0x04
_KEK_BITS = 256
UKM_OCTETS = 32
WRAPPED_OCTETS = 40
"""A package key of 32 octets after key wrap."""


@dataclass(frozen=True, slots=True)
class RecipientInfo:
    """The parts of a KeyAgreeRecipientInfo that vary; `point` is uncompressed, 65 or 97 octets."""

    point: bytes
    ukm: bytes
    recipient: bytes
    """IssuerAndSerialNumber of the recipient's certificate, in DER."""

    wrapped: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the DER form."""
        key = element(0xA1, sequence(_EC_PUBLIC_KEY) + bit_string(self.point))
        return sequence(
            element(_INTEGER, b"\x03"),
            element(0xA0, key),
            element(0xA1, octet_string(self.ukm)),
            sequence(_SCHEMES[_CURVES[len(self.point)]], sequence(_AES256_WRAP)),
            sequence(sequence(self.recipient, octet_string(self.wrapped))),
        )


def parse_recipient_info(data: bytes) -> RecipientInfo:
    """Read the one form that `RecipientInfo.encode` writes; raise InputError for any other octet."""
    try:
        info = _read(data)
        same = info.encode() == data
    except (ValueError, KeyError) as error:
        raise InputError("the recipient info is not a KeyAgreeRecipientInfo of the expected form") from error
    if not same or len(info.ukm) != UKM_OCTETS or len(info.wrapped) != WRAPPED_OCTETS:
        raise InputError("the recipient info names other algorithms or lengths than a package uses")
    return info


def shared_info(ukm: bytes) -> bytes:
    """Return the ECC-CMS-SharedInfo of RFC 5753 section 7.2: the wrap algorithm, `ukm` and the key length in bits."""
    bits = _KEK_BITS.to_bytes(4, "big")
    return sequence(sequence(_AES256_WRAP), element(0xA0, octet_string(ukm)), element(0xA2, octet_string(bits)))


def wrap_package_key(vault: Vault, package_key: KeyHandle, recipient: x509.Certificate, ukm: bytes) -> bytes:
    """Wrap the package key for the holder of a key-agreement certificate, and return the recipient info in DER.

    Raises PolicyError where the token would need a step on the host that the policy does not allow.
    """
    point, kek = agree_as_sender(vault, public_key(recipient), shared_info(ukm))
    with kek:
        wrapped = vault.wrap(kek, package_key)
    return RecipientInfo(point, ukm, issuer_and_serial(recipient), wrapped).encode()


def open_package_key(vault: Vault, label: str, recipient: x509.Certificate, data: bytes, ukm: bytes) -> KeyHandle:
    """Agree with the sender's ephemeral key and unwrap the package key, which then may unwrap and nothing else.

    Raises RefusedError where it was wrapped for another certificate or another header, InputError for a wrong form, and
    IntegrityError where the unwrapping fails.
    """
    info = parse_recipient_info(data)
    reasons = recipient_reasons(info, recipient, ukm)
    if reasons:
        raise RefusedError("the package key was not made for this package and recipient", reasons)
    with agree_as_recipient(vault, label, info.point, shared_info(ukm)) as kek:
        return vault.unwrap_package_key(kek, info.wrapped)


def recipient_reasons(info: RecipientInfo, recipient: x509.Certificate, ukm: bytes) -> list[str]:
    """Say what of the recipient info does not fit this certificate and header."""
    reasons = []
    if info.recipient != issuer_and_serial(recipient):
        reasons.append("the package key was wrapped for another certificate than ours")
    if _CURVES[len(info.point)] != public_key(recipient).curve.name:
        reasons.append("the sender's ephemeral key lies on another curve than ours")
    elif not _is_on_curve(info.point, public_key(recipient).curve):
        reasons.append("the sender's ephemeral key is no point of the curve")
    if not hmac.compare_digest(info.ukm, ukm):
        reasons.append("the package key is bound to another header")
    return reasons


def issuer_and_serial(certificate: x509.Certificate) -> bytes:
    """Return the IssuerAndSerialNumber in DER (RFC 5652 section 10.2.4)."""
    serial = certificate.serial_number
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    return sequence(certificate.issuer.public_bytes(), element(_INTEGER, octets))


def _read(data: bytes) -> RecipientInfo:
    outer = Reader(data)
    body = outer.inside(_SEQUENCE)
    outer.end()
    body.take(_INTEGER)
    key = body.inside(0xA0).inside(0xA1)
    key.take(_SEQUENCE)
    point = key.take(_BIT_STRING)[1:]
    ukm = body.inside(0xA1).take(_OCTET_STRING)
    body.take(_SEQUENCE)
    encrypted = body.inside(_SEQUENCE).inside(_SEQUENCE)
    recipient = element(_SEQUENCE, encrypted.take(_SEQUENCE))
    return RecipientInfo(point, ukm, recipient, encrypted.take(_OCTET_STRING))


def _is_on_curve(point: bytes, curve: ec.EllipticCurve) -> bool:
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except ValueError:
        return False
    return True
