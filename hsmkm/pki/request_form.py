"""The octets of a certificate request before a parser looks at them (PKCS#10, RFC 2986 section 4).

CertificationRequest ::= SEQUENCE { SEQUENCE { version INTEGER (0), subject, SubjectPublicKeyInfo, [0] attributes },
signatureAlgorithm, BIT STRING }. Parsers differ in what they let pass, and what they say of the rest is one sentence
for everything; here each fault has its own.
"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsmkm.pki.der import Reader, check_der, element, sequence

_INTEGER, _BIT_STRING, _SEQUENCE, _ATTRIBUTES = 0x02, 0x03, 0x30, 0xA0

EC_KEY = bytes.fromhex("06072a8648ce3d0201")
NAMED_CURVES = {
    "secp256r1": bytes.fromhex("06082a8648ce3d030107"),
    "secp384r1": bytes.fromhex("06052b81040022"),
}
SIGNATURES = tuple(bytes.fromhex(f"06082a8648ce3d0403{last}") for last in ("02", "03"))
"""ecdsa-with-SHA256 and ecdsa-with-SHA384, with no parameters (RFC 5758 section 3.2)."""

_UNCOMPRESSED = 4
_POINT_OCTETS = {"secp256r1": 65, "secp384r1": 97}


def form_faults(der: bytes) -> list[str]:
    """Say what is wrong with the form of a request in DER; nothing where a parser may look at it."""
    try:
        outer = Reader(der)
        body = outer.take(_SEQUENCE)
    except ValueError:
        return ["not a PKCS#10 request in DER or PEM"]
    try:
        outer.end()
    except ValueError:
        return ["octets follow the request"]
    try:
        check_der(der)
    except ValueError as error:
        return [f"not in DER: {error}"]
    try:
        return _parts_faults(Reader(body))
    except ValueError:
        return ["not a PKCS#10 request in DER or PEM"]


def _parts_faults(body: Reader) -> list[str]:
    info = body.inside(_SEQUENCE)
    algorithm, signature = body.take(_SEQUENCE), body.take(_BIT_STRING)
    body.end()
    version, _subject, key = info.take(_INTEGER), info.take(_SEQUENCE), info.take(_SEQUENCE)
    faults = [] if version == b"\0" else ["the version is not that of PKCS#10, which is 0"]
    try:
        info.take(_ATTRIBUTES)
        info.end()
    except ValueError:
        faults.append("the attributes are missing or are not alone")
    faults += _key_faults(key)
    if algorithm not in SIGNATURES:
        faults.append("the signature algorithm is neither ecdsa-with-SHA256 nor ecdsa-with-SHA384 without parameters")
    return faults + _signature_faults(signature)


def _key_faults(key: bytes) -> list[str]:
    reader = Reader(key)
    algorithm, bits = reader.take(_SEQUENCE), reader.take(_BIT_STRING)
    reader.end()
    if not algorithm.startswith(EC_KEY):
        return ["the key is not on an elliptic curve: neither P-256 nor P-384"]
    curve = next((name for name, oid in NAMED_CURVES.items() if algorithm == EC_KEY + oid), None)
    if curve is None:
        return ["the curve is neither P-256 nor P-384 by name"]
    if len(bits) != 1 + _POINT_OCTETS[curve] or bits[:2] != bytes([0, _UNCOMPRESSED]):
        return [f"the public key is not an uncompressed point of {_POINT_OCTETS[curve]} octets"]
    try:
        load_der_public_key(sequence(element(_SEQUENCE, algorithm), element(_BIT_STRING, bits)))
    except (ValueError, UnsupportedAlgorithm):
        return ["the public key is not a point on its curve"]
    return []


def _signature_faults(bits: bytes) -> list[str]:
    """Check that the signature is a sequence of two positive numbers (RFC 3279 section 2.2.3)."""
    if bits[:1] != b"\0":
        return ["the signature is not a whole number of octets"]
    try:
        check_der(bits[1:])
        whole = Reader(bits[1:])
        pair = whole.inside(_SEQUENCE)
        whole.end()
        numbers = [pair.take(_INTEGER), pair.take(_INTEGER)]
        pair.end()
    except ValueError:
        return ["the signature is not a pair of numbers in DER"]
    if any(number == b"\0" or number[0] >= 0x80 for number in numbers):  # noqa: PLR2004 - the sign bit
        return ["the signature holds a number that is not positive"]
    return []
