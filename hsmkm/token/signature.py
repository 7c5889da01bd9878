"""ECDSA signatures as DLMS writes them: r || s, SHA-256 on P-256 (64 octets), SHA-384 on P-384 (96 octets).

Verification needs no secret and is done on the host.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from hsmkm.errors import IntegrityError
from hsmkm.token import curves


def verify_raw(public: ec.EllipticCurvePublicKey, data: bytes, signature: bytes) -> None:
    """Check a signature; IntegrityError if its length, r or s is out of range, or if it does not fit.

    Raises InputError for a key on another curve than P-256 or P-384.
    """
    name = curves.name_of(public)
    octets = curves.field_octets(name)
    if len(signature) != 2 * octets:
        raise IntegrityError(f"a signature on {name} has {len(signature)} octets instead of {2 * octets}")
    halves = [int.from_bytes(half) for half in (signature[:octets], signature[octets:])]
    if not all(0 < half < curves.order(name) for half in halves):
        raise IntegrityError("r or s of a signature is out of range", hint="the signer is broken, or it is forged")
    try:
        public.verify(encode_dss_signature(*halves), data, ec.ECDSA(curves.hash_algorithm(name)))
    except InvalidSignature as error:
        raise IntegrityError(
            "a signature does not fit its data", hint="it was altered, or is of another key"
        ) from error
