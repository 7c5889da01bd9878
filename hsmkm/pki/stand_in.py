"""Keys that cryptography's builders take for private ones: what they sign with is chosen apart from what they show."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from cryptography.utils import Buffer

Sign = Callable[[bytes, ec.EllipticCurveSignatureAlgorithm], bytes]


def signer_for_another(
    signer: ec.EllipticCurvePrivateKey, shown: ec.EllipticCurvePublicKey
) -> ec.EllipticCurvePrivateKey:
    """Return a key that signs as `signer` does and shows the public key of another, which cannot sign."""
    return _StandIn(shown, signer.curve, signer.sign)


class _StandIn(ec.EllipticCurvePrivateKey):
    def __init__(self, shown: ec.EllipticCurvePublicKey, curve: ec.EllipticCurve, sign: Sign) -> None:
        self._shown = shown
        self._curve = curve
        self._sign = sign

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._curve

    @property
    def key_size(self) -> int:
        return self._curve.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._shown

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        return self._sign(bytes(data), signature_algorithm)

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        del algorithm, peer_public_key
        raise TypeError("a stand-in has no private key")

    def private_numbers(self) -> NoReturn:
        raise TypeError("a stand-in has no private key")

    def private_bytes(self, encoding: object, format: object, encryption_algorithm: object) -> NoReturn:  # noqa: A002 - the interface's name
        del encoding, format, encryption_algorithm
        raise TypeError("a stand-in has no private key")

    def __copy__(self) -> _StandIn:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> _StandIn:
        return self
