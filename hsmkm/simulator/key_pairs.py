"""Software key pairs on the curves of suites 1 and 2: what a meter has in its flash, and what tests use for a token."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsmkm.dlms.types import SecuritySuite
from hsmkm.errors import IntegrityError

_P256_OCTETS = 32


def curve_of(suite: SecuritySuite) -> ec.EllipticCurve:
    """The curve of the suite; raises RefusedError for suite 0."""
    return ec.SECP256R1() if suite.coordinate_octets == _P256_OCTETS else ec.SECP384R1()


def generate(suite: SecuritySuite) -> ec.EllipticCurvePrivateKey:
    """Make a key pair of the suite."""
    return ec.generate_private_key(curve_of(suite))


def digest_of(curve: ec.EllipticCurve) -> hashes.SHA256 | hashes.SHA384:
    """The digest that goes with a curve."""
    return hashes.SHA256() if isinstance(curve, ec.SECP256R1) else hashes.SHA384()


def point_of(public: ec.EllipticCurvePublicKey) -> bytes:
    """Give X || Y."""
    return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def public_of(suite: SecuritySuite, point: bytes) -> ec.EllipticCurvePublicKey:
    """Read X || Y; raises IntegrityError off the curve."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve_of(suite), b"\x04" + point)
    except ValueError:
        raise IntegrityError("the point is not on the curve of the security suite") from None


def derive(
    suite: SecuritySuite, private: ec.EllipticCurvePrivateKey, peer: ec.EllipticCurvePublicKey, other_info: bytes
) -> bytes:
    """Agree on Z and derive a key of the suite by the concatenation KDF of NIST SP 800-56A."""
    shared = private.exchange(ec.ECDH(), peer)
    return derive_from(suite, shared, other_info)


def derive_from(suite: SecuritySuite, shared: bytes, other_info: bytes) -> bytes:
    """Derive a key of the suite from Z."""
    return ConcatKDFHash(digest_of(curve_of(suite)), suite.key_octets, other_info).derive(shared)


class SoftwareSigner:
    """A private key for digital signatures; fulfils `hsmkm.dlms.hls.Signer`."""

    __slots__ = ("_private",)

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private

    def sign(self, data: bytes) -> bytes:
        """Give r || s."""
        signature = self._private.sign(data, ec.ECDSA(digest_of(self._private.curve)))
        octets = (self._private.key_size + 7) // 8
        return b"".join(half.to_bytes(octets, "big") for half in utils.decode_dss_signature(signature))


class SoftwareVerifier:
    """A public key for digital signatures; fulfils `hsmkm.dlms.hls.Verifier`."""

    __slots__ = ("_public",)

    def __init__(self, public: ec.EllipticCurvePublicKey) -> None:
        self._public = public

    def verify(self, data: bytes, raw: bytes) -> None:
        """Check r || s; raises IntegrityError."""
        middle = len(raw) // 2
        halves = int.from_bytes(raw[:middle], "big"), int.from_bytes(raw[middle:], "big")
        try:
            signature = utils.encode_dss_signature(*halves)
            self._public.verify(signature, data, ec.ECDSA(digest_of(self._public.curve)))
        except InvalidSignature:
            raise IntegrityError("the signature does not fit") from None
