"""Elliptic curves and public points as PKCS#11 writes them (SEC 1, RFC 5480)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsmkm.errors import InputError, TokenRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_OCTET_STRING = 0x04

# DER of the OIDs 1.2.840.10045.3.1.7 and 1.3.132.0.34, as CKA_EC_PARAMS holds them.
_PARAMETERS: Mapping[str, bytes] = {
    "P-256": bytes.fromhex("06082a8648ce3d030107"),
    "P-384": bytes.fromhex("06052b81040022"),
}
_CURVES: Mapping[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}
# The orders of the base points (SEC 2, sections 2.4.2 and 2.5.1).
_ORDERS: Mapping[str, int] = {
    "P-256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "P-384": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
}
_HASHES: Mapping[str, hashes.HashAlgorithm] = {"P-256": hashes.SHA256(), "P-384": hashes.SHA384()}
_NAMES = {"secp256r1": "P-256", "secp384r1": "P-384"}


def parameters(name: str) -> bytes:
    """Return the DER of the curve's OID; InputError for a curve that DLMS does not use."""
    if name not in _PARAMETERS:
        raise InputError(f"no curve {name} here", hint="P-256 or P-384")
    return _PARAMETERS[name]


def name_of(key: ec.EllipticCurvePublicKey) -> str:
    """Name the curve of a key; InputError for a curve that DLMS does not use."""
    if key.curve.name not in _NAMES:
        raise InputError(f"no curve {key.curve.name} here", hint="P-256 or P-384")
    return _NAMES[key.curve.name]


def field_octets(name: str) -> int:
    """Return the length of a coordinate: 32 octets on P-256, 48 on P-384."""
    return _CURVES[name].key_size // 8


def order(name: str) -> int:
    """Return the order of the curve's base point."""
    return _ORDERS[name]


def hash_algorithm(name: str) -> hashes.HashAlgorithm:
    """Return the hash that DLMS uses with a curve: SHA-256 on P-256, SHA-384 on P-384."""
    return _HASHES[name]


def encode(key: ec.EllipticCurvePublicKey) -> bytes:
    """Write a point uncompressed: 65 octets on P-256, 97 on P-384."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def decode(name: str, point: bytes) -> ec.EllipticCurvePublicKey:
    """Read an uncompressed point; InputError if it has another form or is not on the curve."""
    if len(point) != 1 + 2 * field_octets(name) or point[0] != _OCTET_STRING:
        raise InputError(f"a point on {name} is not in uncompressed form", hint="04, X and Y")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[name], point)
    except ValueError as error:
        raise InputError(f"a point is not on {name}", hint="the sender's key is wrong") from error


def encode_raw(key: ec.EllipticCurvePublicKey) -> bytes:
    """Write a point as DLMS does, X || Y: 64 octets on P-256, 96 on P-384."""
    return encode(key)[1:]


def decode_raw(name: str, point: bytes) -> ec.EllipticCurvePublicKey:
    """Read X || Y; InputError if it has another length or is not on the curve."""
    return decode(name, bytes((_OCTET_STRING,)) + point)


def from_token(ec_params: bytes, ec_point: bytes) -> ec.EllipticCurvePublicKey:
    """Read CKA_EC_PARAMS and CKA_EC_POINT, a DER OCTET STRING; TokenRefusedError for another curve or form."""
    for name, known in _PARAMETERS.items():
        if ec_params == known:
            octets = 1 + 2 * field_octets(name)
            if ec_point[:2] != bytes((_OCTET_STRING, octets)):
                raise TokenRefusedError("the token shows a public point that is not a DER octet string")
            return decode(name, ec_point[2:])
    raise TokenRefusedError("the token shows a public key on a curve that is not used here")
