"""Agreement on the key under which a package's key travels (RFC 5753, dhSinglePass-stdDH-sha256kdf / -sha384kdf).

The KDF is that of ANSI X9.63 in one round: K = Hash(Z || 00000001 || SharedInfo), SHA-256 with P-256 and SHA-384 with
P-384, of which the first 32 octets are the AES-256 key. On the rung digest-key Z stays in the token, which hashes it;
the agreed key passes through C memory once, which is wiped. The policy kdf_on_host allows it or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkcs11 import Attribute

from hsmkm.errors import PolicyError
from hsmkm.token import attributes, curves
from hsmkm.token.template import Template, ffi, wipe
from hsmkm.token.types import CarrierRole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from hsmkm.token.keys import KeyHandle
    from hsmkm.token.vault import Vault

KEK_OCTETS = 32
_COUNTER = b"\0\0\0\1"


def agree_as_sender(
    vault: Vault, recipient_public: ec.EllipticCurvePublicKey, shared_info: bytes
) -> tuple[bytes, KeyHandle]:
    """Make an ephemeral key pair in the token and agree; its point, uncompressed, and a key that only wraps.

    Raises PolicyError unless the policy allows the token's way of deriving, InputError for a curve other than P-256 and
    P-384.
    """
    _allow(vault)
    curve = curves.name_of(recipient_public)
    cryptoki = vault.session.cryptoki
    public = attributes.ec_public_key(Attribute.DERIVE, curves.parameters(curve), on_token=False)
    private = attributes.ec_private_key(Attribute.DERIVE, on_token=False)
    mechanism = vault.session.profile.mechanisms.ec_key_pair_gen
    halves = cryptoki.generate_pair(mechanism, Template(public), Template(private))
    try:
        point = curves.encode(
            curves.from_token(
                cryptoki.read(halves[0], Attribute.EC_PARAMS), cryptoki.read(halves[0], Attribute.EC_POINT)
            )
        )
        kek = _derive(vault, curve, halves[1], curves.encode(recipient_public), shared_info, Attribute.WRAP)
    finally:
        for half in halves:
            cryptoki.destroy(half)
    return point, kek


def agree_as_recipient(vault: Vault, label: str, ephemeral_point: bytes, shared_info: bytes) -> KeyHandle:
    """Agree with the key pair of this label; a key that only unwraps.

    Raises PolicyError as agree_as_sender does, InputError for a point that is not on the key's curve.
    """
    _allow(vault)
    curve = curves.name_of(vault.public_key(label))
    curves.decode(curve, ephemeral_point)
    private = vault.key_pairs.private(label, "derive")
    return _derive(vault, curve, private, ephemeral_point, shared_info, Attribute.UNWRAP)


def _allow(vault: Vault) -> None:
    if not vault.session.settings.kdf_on_host:
        raise PolicyError(
            "this token derives an agreed key through host memory, which the policy forbids",
            hint="set policy.kdf_on_host, or use a token with CKD_SHA256_KDF",
        )


def _derive(vault: Vault, curve: str, private: int, point: bytes, shared_info: bytes, usage: Attribute) -> KeyHandle:
    """Make Z in the token, hash it there, and give the first 32 octets back to the token as a key."""
    mechanisms = vault.session.profile.mechanisms
    digest = mechanisms.sha256 if curve == "P-256" else mechanisms.sha384
    cryptoki = vault.session.cryptoki
    octets = curves.field_octets(curve)
    modifiable = not vault.session.profile.guards.unwrapped_unmodifiable
    listed = {Attribute.VALUE_LEN: octets, Attribute.MODIFIABLE: modifiable}
    template = Template(attributes.shared_secret() | listed)
    shared = cryptoki.derive_ecdh(mechanisms.ecdh1_derive, private, point, template)
    hashed = ffi.new("unsigned char[]", octets)
    value = ffi.new("unsigned char[]", KEK_OCTETS)
    try:
        cryptoki.digest_key(digest, shared, _COUNTER + shared_info, hashed)
        ffi.memmove(value, hashed, KEK_OCTETS)
        return vault.adopt(attributes.carrier_key(usage), value, CarrierRole.AGREED)
    finally:
        wipe(hashed)
        wipe(value)
        cryptoki.destroy(shared)
