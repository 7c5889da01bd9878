"""ECDH and the two key derivation functions, each on the best rung of its ladder that the policy allows.

X9.63 (packages, RFC 5753): K = Hash(Z || 00000001 || info). SP 800-56A concatenation (DLMS): K = Hash(00000001 || Z ||
info). Both in one round, with SHA-256 on P-256 and SHA-384 on P-384, of which the key is the first octets. Z never
leaves the token. On the rung digest-key the derived key passes through C memory once, which is wiped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pkcs11 import Attribute

from hsmkm.errors import PolicyError
from hsmkm.token import attributes, curves
from hsmkm.token.template import ffi, wipe

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from hsmkm.token.attributes import Attributes, Role
    from hsmkm.token.keys import KeyHandle
    from hsmkm.token.template import Template
    from hsmkm.token.types import Use
    from hsmkm.token.vault import Vault

_COUNTER = b"\0\0\0\1"
_ON_HOST = "digest-key"


class Kdf(Enum):
    """A key derivation function; the value is the name of its ladder."""

    X963 = "kdf_x963"
    SP800 = "kdf_sp800"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The key to derive: its attributes, what its handle says, and its length in octets."""

    attributes: Attributes
    role: Role
    use: Use
    octets: int


def choose_rung(vault: Vault, kdf: Kdf) -> str:
    """Name the best way of this token that the policy allows; PolicyError if there is none."""
    ladder = vault.session.profile.ladders[kdf.value]
    for rung in ladder:
        if rung != _ON_HOST or vault.session.settings.kdf_on_host:
            return rung
    if ladder:
        raise PolicyError(
            "this token derives an agreed key through host memory, which the policy forbids",
            hint="set policy.kdf_on_host, or use a token that derives by itself",
        )
    raise PolicyError(f"this token has no way to derive an agreed key ({kdf.value})", hint="use another token")


def agree(
    vault: Vault, kdf: Kdf, private: int, peer: ec.EllipticCurvePublicKey, info: bytes, wanted: Wanted
) -> KeyHandle:
    """Agree with a peer whose point was checked to be on the curve, and derive the key that is wanted."""
    rung, curve = choose_rung(vault, kdf), curves.name_of(peer)
    session, point = vault.session, curves.encode(peer)
    if rung == "native":
        template = _derived(vault, wanted.attributes, wanted.octets)
        number = session.cryptoki.derive_ecdh(
            session.profile.mechanisms.ecdh1_derive, private, point, template, _native(vault, kdf, curve), info
        )
        return vault.adopt_object(number, template, wanted.role, wanted.use, wanted.octets)
    listed = attributes.shared_secret(derives=rung == "concatenate")
    template = _derived(vault, listed, curves.field_octets(curve))
    shared = session.cryptoki.derive_ecdh(session.profile.mechanisms.ecdh1_derive, private, point, template)
    try:
        return derive(vault, kdf, curve, shared, info, wanted)
    finally:
        session.cryptoki.destroy(shared)


def derive(vault: Vault, kdf: Kdf, curve: str, shared: int, info: bytes, wanted: Wanted) -> KeyHandle:
    """Derive a key of Z, a secret in the token, on the rung concatenate or digest-key."""
    if choose_rung(vault, kdf) == "concatenate":
        return _concatenate(vault, curve, shared, info, wanted)
    return _digest(vault, kdf, curve, shared, info, wanted)


def _native(vault: Vault, kdf: Kdf, curve: str) -> int:
    kdfs = vault.session.profile.kdfs
    if kdf is Kdf.X963:
        return kdfs.sha256_x963 if curve == "P-256" else kdfs.sha384_x963
    return kdfs.sha256_sp800 if curve == "P-256" else kdfs.sha384_sp800


def _derived(vault: Vault, listed: Attributes, octets: int) -> Template:
    """Complete the attributes for C_DeriveKey, which some tokens let make no unmodifiable object."""
    modifiable = not vault.session.profile.guards.unwrapped_unmodifiable
    return vault.session.template(listed | {Attribute.VALUE_LEN: octets, Attribute.MODIFIABLE: modifiable})


def _concatenate(vault: Vault, curve: str, shared: int, info: bytes, wanted: Wanted) -> KeyHandle:
    """Put the counter before Z and the info after it, and take the hash as a key: nothing passes through the host."""
    mechanisms, cryptoki = vault.session.profile.mechanisms, vault.session.cryptoki
    listed, octets = attributes.shared_secret(derives=True), len(_COUNTER) + curves.field_octets(curve)
    template = _derived(vault, listed, octets)
    counted = cryptoki.derive_with_data(mechanisms.concatenate_data_and_base, shared, _COUNTER, template)
    try:
        template = _derived(vault, listed, octets + len(info))
        whole = cryptoki.derive_with_data(mechanisms.concatenate_base_and_data, counted, info, template)
    finally:
        cryptoki.destroy(counted)
    template = _derived(vault, wanted.attributes, wanted.octets)
    mechanism = mechanisms.sha256_key_derivation if curve == "P-256" else mechanisms.sha384_key_derivation
    try:
        number = cryptoki.derive_hash(mechanism, whole, template)
    finally:
        cryptoki.destroy(whole)
    return vault.adopt_object(number, template, wanted.role, wanted.use, wanted.octets)


def _digest(vault: Vault, kdf: Kdf, curve: str, shared: int, info: bytes, wanted: Wanted) -> KeyHandle:
    """Hash Z in the token, and give the first octets back to the token as a key."""
    mechanisms = vault.session.profile.mechanisms
    mechanism = mechanisms.sha256 if curve == "P-256" else mechanisms.sha384
    before, after = (b"", _COUNTER + info) if kdf is Kdf.X963 else (_COUNTER, info)
    hashed = ffi.new("unsigned char[]", curves.field_octets(curve))
    value = ffi.new("unsigned char[]", wanted.octets)
    try:
        vault.session.cryptoki.digest_key(mechanism, before, shared, after, hashed)
        ffi.memmove(value, hashed, wanted.octets)
        return vault.adopt(wanted.attributes, value, wanted.role, wanted.use)
    finally:
        wipe(hashed)
        wipe(value)
