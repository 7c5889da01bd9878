"""HLS secrets, hashed in the token: Hash(before || secret || after), for mechanisms 3, 4 and 6.

On the rung digest-readable the token hashes no sensitive key with this digest (SoftHSM with MD5). The secret then goes
under a key made for it alone, and comes back as a session object that is readable until it is hashed: its value is not
in host memory there either, but host code could have read it.
"""

from __future__ import annotations

import hmac
import sys
from typing import TYPE_CHECKING

from pkcs11 import Attribute

from hsmkm.errors import PolicyError
from hsmkm.token import attributes
from hsmkm.token.template import ffi, wipe
from hsmkm.token.types import Digest, SecretRole, Use

if TYPE_CHECKING:
    from hsmkm.token.keys import KeyHandle
    from hsmkm.token.types import Sealed
    from hsmkm.token.vault import Vault

_OCTETS = {Digest.MD5: 16, Digest.SHA1: 20, Digest.SHA256: 32}
_PASSAGE_OCTETS = 32


def digest_secret(vault: Vault, sealed: Sealed, digest: Digest, before: bytes, after: bytes) -> bytes:
    """Hash a sealed HLS secret between other octets; 16, 20 or 32 octets, which go to the other side.

    Raises IntegrityError if the secret does not open, PolicyError if this token cannot hash one with this digest.
    """
    profile = vault.session.profile
    ladder = profile.ladders["digest_md5" if digest is Digest.MD5 else "digest_sha"]
    if not ladder:
        raise PolicyError(f"this token hashes no HLS secret with {digest}", hint="use another mechanism: 5, 6 or 7")
    mechanism = {Digest.MD5: profile.mechanisms.md5, Digest.SHA1: profile.mechanisms.sha1}.get(
        digest, profile.mechanisms.sha256
    )
    out = ffi.new("unsigned char[]", _OCTETS[digest])
    cryptoki = vault.session.cryptoki
    if ladder[0] == "digest-key":
        with vault.open(SecretRole.HLS, sealed, 0, Use.IN_USE) as secret:
            cryptoki.digest_key(mechanism, before, secret.number(), after, out)
    else:
        with vault.open(SecretRole.HLS, sealed, 0, Use.TRANSPORT) as secret:
            readable = _make_readable(vault, secret)
        try:
            cryptoki.digest_key(mechanism, before, readable, after, out)
        finally:
            cryptoki.destroy(readable)
    return bytes(ffi.buffer(out))


def comes_back_whole(vault: Vault, role: SecretRole, secret: KeyHandle) -> bool:
    """Tell whether a secret in transport comes back from its seal as it is.

    RFC 5649 hides the length in what is wrapped, and SoftHSM unwraps 13 octets but wraps them as 16: the hashes differ.
    """
    cryptoki, mechanism = vault.session.cryptoki, vault.session.profile.mechanisms.sha256
    told = int.from_bytes(cryptoki.read(secret.number(), Attribute.VALUE_LEN), sys.byteorder)
    if told not in (0, secret.octets):  # SoftHSM tells 0 of what it unwraps
        return False
    hashes = [ffi.new("unsigned char[]", _OCTETS[Digest.SHA256]) for _ in range(2)]
    try:
        with vault.open(role, vault.seal(secret), 0, Use.TRANSPORT) as again:
            for key, hashed in zip((secret, again), hashes, strict=True):
                cryptoki.digest_key(mechanism, b"", key.number(), b"", hashed)
        return hmac.compare_digest(ffi.buffer(hashes[0]), ffi.buffer(hashes[1]))
    finally:
        for hashed in hashes:
            wipe(hashed)


def _make_readable(vault: Vault, secret: KeyHandle) -> int:
    session = vault.session
    mechanisms, cryptoki = session.profile.mechanisms, session.cryptoki
    listed = attributes.passage_key() | {Attribute.VALUE_LEN: _PASSAGE_OCTETS}
    passage = cryptoki.generate_key(mechanisms.aes_key_gen, session.template(listed))
    modifiable = not session.profile.guards.unwrapped_unmodifiable
    template = session.template(attributes.readable_secret() | {Attribute.MODIFIABLE: modifiable})
    try:
        wrapped = cryptoki.wrap(mechanisms.aes_key_wrap_pad, passage, secret.number())
        return cryptoki.unwrap(mechanisms.aes_key_wrap_pad, passage, wrapped, template)
    finally:
        cryptoki.destroy(passage)
