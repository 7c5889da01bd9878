"""What the signature of a certificate covers, TBSCertificate (RFC 5280 section 4.1), put together from a plan.

All that certificates of one authority and profile share is encoded once. Nothing here is trusted: `lint` reads the
octets back with another's parser before they are signed.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

from cryptography import x509

from hsmkm.pki.der import bit_string, element, octet_string, sequence
from hsmkm.pki.lint import Extension, Plan, extensions_under, key_identifier, shared_extensions
from hsmkm.pki.profiles import CertificateProfile, hash_for
from hsmkm.pki.requests import subject_name

_INTEGER, _OID, _UTC_TIME, _GENERALIZED_TIME = 0x02, 0x06, 0x17, 0x18
_V3 = bytes.fromhex("a003020102")
_EXTENSIONS = 0xA3
_TRUE = bytes.fromhex("0101ff")
_LAST_UTC_YEAR = 2049
"""Dates through 2049 are UTCTime, later ones GeneralizedTime (RFC 5280 section 4.1.2.5)."""

_ALGORITHMS = {
    "sha256": bytes.fromhex("300a06082a8648ce3d040302"),
    "sha384": bytes.fromhex("300a06082a8648ce3d040303"),
}
"""AlgorithmIdentifier of ecdsa-with-SHA256 and ecdsa-with-SHA384, parameters absent (RFC 5758 section 3.2)."""

_NO_SIGNATURE = sequence(element(_INTEGER, b"\1"), element(_INTEGER, b"\1"))
"""Stands where the signature goes, so that a parser takes what is not signed yet: r and s are 1."""


def encode(plan: Plan) -> bytes:
    """Encode the octets that are to be signed, in DER."""
    subject = subject_name(plan.subject).public_bytes()
    extensions = _extension(key_identifier(plan.key)) + _shared(plan)
    return sequence(
        _V3,
        element(_INTEGER, plan.serial.to_bytes(plan.serial.bit_length() // 8 + 1, "big")),
        _algorithm(plan),
        subject if plan.issuer is None else _subject_of(plan.issuer),
        _validity(plan.not_before, plan.not_after),
        subject,
        plan.key,
        element(_EXTENSIONS, sequence(extensions)),
    )


def unsigned(tbs: bytes, plan: Plan) -> x509.Certificate:
    """Read the octets as a certificate whose signature is none; raise ValueError where they are no certificate."""
    return x509.load_der_x509_certificate(with_signature(tbs, plan, _NO_SIGNATURE))


def with_signature(tbs: bytes, plan: Plan, signature: bytes) -> bytes:
    """Put a signature in DER to what it covers: the certificate in DER."""
    return sequence(tbs, _algorithm(plan), bit_string(signature))


def _algorithm(plan: Plan) -> bytes:
    return _ALGORITHMS[hash_for(plan.issuer_key.curve).name]


@lru_cache(maxsize=8)
def _subject_of(issuer: x509.Certificate) -> bytes:
    return issuer.subject.public_bytes()


@lru_cache(maxsize=8)
def _validity(begin: datetime, end: datetime) -> bytes:
    return sequence(_time(begin), _time(end))


def _time(moment: datetime) -> bytes:
    if moment.year > _LAST_UTC_YEAR:
        return element(_GENERALIZED_TIME, f"{moment:%Y%m%d%H%M%SZ}".encode())
    return element(_UTC_TIME, f"{moment:%y%m%d%H%M%SZ}".encode())


def _shared(plan: Plan) -> bytes:
    if plan.issuer is None:
        return b"".join(map(_extension, shared_extensions(plan)))
    return _under(plan.issuer, plan.profile, plan.arc, plan.names)


@lru_cache(maxsize=8)
def _under(issuer: x509.Certificate, kind: CertificateProfile, arc: str, names: tuple[str, ...]) -> bytes:
    return b"".join(map(_extension, extensions_under(issuer, kind, arc, names)))


def _extension(extension: Extension) -> bytes:
    critical, value = extension
    oid = element(_OID, _oid(value.oid.dotted_string))
    return sequence(oid, _TRUE if critical else b"", octet_string(value.public_bytes()))


@lru_cache(maxsize=32)
def _oid(dotted: str) -> bytes:
    """Encode an object identifier: the first two arcs in one octet, the others in base 128 (ITU-T X.690, 8.19)."""
    first, second, *others = map(int, dotted.split("."))
    return b"".join(map(_base_128, (40 * first + second, *others)))


def _base_128(arc: int) -> bytes:
    octets = [arc & 0x7F]
    while arc := arc >> 7:
        octets.append(0x80 | arc & 0x7F)
    return bytes(reversed(octets))
