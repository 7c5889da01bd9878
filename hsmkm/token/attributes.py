"""The attributes of every key, one table: what each may do is stated in full, because tokens' defaults are generous.

A session key is either in transport (EXTRACTABLE, no usage) or in use (its usage, not EXTRACTABLE); only at its birth
is a master key both. No key has WRAP or UNWRAP together with ENCRYPT or DECRYPT. Three are readable in use, because the
standard puts their value into an APDU or its additional authenticated data: a GAK, an LLS password, a dedicated key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkcs11 import Attribute, KeyType, ObjectClass

from hsmkm.token.template import Template, Value
from hsmkm.token.types import CarrierRole, KeyRole, SecretRole, SessionRole, Use

if TYPE_CHECKING:
    from collections.abc import Mapping

Role = KeyRole | SecretRole | SessionRole | CarrierRole
Attributes = dict[Attribute, Value]

STORAGE_KEY_OCTETS = 32
_USAGES = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.DERIVE,
)
_PAIR_USAGES: Mapping[bool, tuple[Attribute, ...]] = {
    False: (Attribute.ENCRYPT, Attribute.WRAP, Attribute.VERIFY, Attribute.VERIFY_RECOVER, Attribute.DERIVE),
    True: (Attribute.DECRYPT, Attribute.UNWRAP, Attribute.SIGN, Attribute.SIGN_RECOVER, Attribute.DERIVE),
}

# What a session key in use may do; GAK and secrets are data there, not keys.
_IN_USE: Mapping[Role, frozenset[Attribute]] = {
    KeyRole.MASTER: frozenset({Attribute.WRAP}),
    KeyRole.GUEK: frozenset({Attribute.ENCRYPT, Attribute.DECRYPT}),
    KeyRole.GBEK: frozenset({Attribute.ENCRYPT, Attribute.DECRYPT}),
    KeyRole.GAK: frozenset(),
    SecretRole.LLS: frozenset(),
    SecretRole.HLS: frozenset(),
    SessionRole.DEDICATED: frozenset({Attribute.ENCRYPT, Attribute.DECRYPT}),
    SessionRole.EPHEMERAL: frozenset({Attribute.ENCRYPT, Attribute.DECRYPT}),
}
READABLE: frozenset[Role] = frozenset({KeyRole.GAK, SecretRole.LLS, SessionRole.DEDICATED})
_AT_BIRTH: Mapping[Role, frozenset[Attribute]] = {
    KeyRole.MASTER: frozenset({Attribute.WRAP}),
    CarrierRole.PACKAGE: frozenset({Attribute.WRAP}),
    SessionRole.EPHEMERAL: frozenset({Attribute.ENCRYPT, Attribute.DECRYPT}),
}


def secret_key(
    key_type: KeyType, usages: frozenset[Attribute], *, on_token: bool, sensitive: bool, extractable: bool
) -> Attributes:
    """List the attributes of a symmetric key; every usage that is not named is refused."""
    attributes: Attributes = {
        Attribute.CLASS: int(ObjectClass.SECRET_KEY),
        Attribute.KEY_TYPE: int(key_type),
        Attribute.TOKEN: on_token,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: sensitive,
        Attribute.EXTRACTABLE: extractable,
        Attribute.MODIFIABLE: False,
        Attribute.COPYABLE: False,
    }
    return attributes | {usage: usage in usages for usage in _USAGES}


def session_key(role: Role, use: Use) -> Attributes:
    """List the attributes of a session key of this role, in this use."""
    key_type = KeyType.GENERIC_SECRET if isinstance(role, SecretRole) else KeyType.AES
    if use is Use.IN_USE:
        readable = role in READABLE
        return secret_key(key_type, _IN_USE[role], on_token=False, sensitive=not readable, extractable=readable)
    usages = _AT_BIRTH.get(role, frozenset()) if use is Use.BIRTH else frozenset()
    return secret_key(key_type, usages, on_token=False, sensitive=True, extractable=True)


def carrier_key(usage: Attribute) -> Attributes:
    """List the attributes of a key that only wraps, or only unwraps, and never leaves."""
    return secret_key(KeyType.AES, frozenset({usage}), on_token=False, sensitive=True, extractable=False)


def passage_key() -> Attributes:
    """List the attributes of a key under which a secret is wrapped and unwrapped again with other attributes."""
    usages = frozenset({Attribute.WRAP, Attribute.UNWRAP})
    return secret_key(KeyType.AES, usages, on_token=False, sensitive=True, extractable=False)


def readable_secret() -> Attributes:
    """List the attributes of an HLS secret where the token digests no sensitive one; it lives for one digest."""
    return secret_key(KeyType.GENERIC_SECRET, frozenset(), on_token=False, sensitive=False, extractable=True)


def shared_secret(*, derives: bool) -> Attributes:
    """List the attributes of an ECDH secret and of what is made of it on the way: digested, or derived from, only."""
    usages = frozenset({Attribute.DERIVE}) if derives else frozenset()
    return secret_key(KeyType.GENERIC_SECRET, usages, on_token=False, sensitive=True, extractable=False)


def storage_key(*, guarded: bool) -> Attributes:
    """List the attributes of a storage key; `guarded` lets nothing unwrapped under it be readable."""
    usages = frozenset({Attribute.WRAP, Attribute.UNWRAP})
    attributes = secret_key(KeyType.AES, usages, on_token=True, sensitive=True, extractable=False)
    if guarded:
        attributes[Attribute.UNWRAP_TEMPLATE] = Template({Attribute.SENSITIVE: True})
    return attributes


def line_key() -> Attributes:
    """List the attributes of a line key: it wraps master keys, and nothing else."""
    return secret_key(KeyType.AES, frozenset({Attribute.WRAP}), on_token=True, sensitive=True, extractable=False)


def integrity_key() -> Attributes:
    """List the attributes of an HMAC key."""
    usages = frozenset({Attribute.SIGN, Attribute.VERIFY})
    return secret_key(KeyType.GENERIC_SECRET, usages, on_token=True, sensitive=True, extractable=False)


def ec_private_key(usage: Attribute, *, on_token: bool) -> Attributes:
    """List the attributes of a private key that only signs or only derives."""
    attributes: Attributes = {
        Attribute.CLASS: int(ObjectClass.PRIVATE_KEY),
        Attribute.KEY_TYPE: int(KeyType.EC),
        Attribute.TOKEN: on_token,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.MODIFIABLE: False,
        Attribute.COPYABLE: False,
    }
    return attributes | {each: each is usage for each in _PAIR_USAGES[True]}


def kept_private_key(usage: Attribute) -> Attributes:
    """List what a private key found in the token must have.

    COPYABLE is not asked of one that derives: it is a copy of the key that signed its own request at birth, and tokens
    do not lower COPYABLE in a copy. MODIFIABLE is false, so that no further copy can be given another usage.
    """
    listed = ec_private_key(usage, on_token=True)
    if usage is Attribute.DERIVE:
        del listed[Attribute.COPYABLE]
    return listed


def ec_pair_at_birth(parameters: bytes) -> tuple[Attributes, Attributes]:
    """List the attributes of a key-agreement pair while it signs its request: session objects that may be copied.

    The public half may verify: NSS signs and verifies something with each pair that it makes.
    """
    free: Attributes = {Attribute.MODIFIABLE: True, Attribute.COPYABLE: True}
    public = ec_public_key(Attribute.DERIVE, parameters, on_token=False) | free
    private = ec_private_key(Attribute.DERIVE, on_token=False) | free
    return public | {Attribute.VERIFY: True}, private | {Attribute.SIGN: True}


def ec_copy(*, of_private: bool) -> Attributes:
    """List what the copy of such a half has in place of what it had at birth.

    MODIFIABLE stands last: SoftHSM takes the attributes in turn, and refuses what follows it.
    """
    usage = Attribute.SIGN if of_private else Attribute.VERIFY
    return {Attribute.TOKEN: True, usage: False, Attribute.MODIFIABLE: False}


def ec_public_key(usage: Attribute, parameters: bytes, *, on_token: bool) -> Attributes:
    """List the attributes of the public half; `parameters` is the DER of the curve's OID."""
    mirror = Attribute.VERIFY if usage is Attribute.SIGN else Attribute.DERIVE
    attributes: Attributes = {
        Attribute.CLASS: int(ObjectClass.PUBLIC_KEY),
        Attribute.KEY_TYPE: int(KeyType.EC),
        Attribute.TOKEN: on_token,
        Attribute.PRIVATE: False,
        Attribute.MODIFIABLE: False,
        Attribute.COPYABLE: False,
        Attribute.EC_PARAMS: parameters,
    }
    return attributes | {each: each is mirror for each in _PAIR_USAGES[False]}
