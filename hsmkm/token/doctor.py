"""Tries a token: every operation a party needs is done, and every guard is misused, on probe objects.

What a token can is found by doing it, never from its list of mechanisms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from pkcs11 import Attribute, KeyType

from hsmkm.errors import HsmkmError, IntegrityError, TokenRefusedError
from hsmkm.token import attributes, curves
from hsmkm.token.agreement import agree_as_recipient, agree_as_sender, agree_dlms, make_ephemeral_pair
from hsmkm.token.derivation import Kdf, choose_rung
from hsmkm.token.keyring import STORAGE
from hsmkm.token.profile import load_profile
from hsmkm.token.secret import digest_secret
from hsmkm.token.session import open_session
from hsmkm.token.signer import TokenSigner
from hsmkm.token.template import Template
from hsmkm.token.types import Digest, KeyRole, SecretRole, Use
from hsmkm.token.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsmkm.token.keys import CipherKey
    from hsmkm.token.profile import Profile
    from hsmkm.token.types import TokenSettings

_IV = bytes(12)
_BOTH, _AUTHENTICATION = 0x30, 0x10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing tried, how it went, and what to do if it went wrong; `error` where nothing more could be tried.

    `standing` tells of what is sound but must be known: "open", a guard that this kind of token does not have, or
    "declared", a value that is in host memory in clear.
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""
    error: HsmkmError | None = None
    standing: Literal["", "open", "declared"] = ""

    @property
    def verdict(self) -> str:
        """Say in a word how it went: ok, open, declared or FAILED."""
        return (self.standing or "ok") if self.ok else "FAILED"


@dataclass(frozen=True, slots=True)
class Open:
    """What a probe tells of a guard that this kind of token is known not to have."""

    detail: str


class FailedProbeError(TokenRefusedError):
    """A probe's outcome is wrong although no call failed."""


def examine(settings: TokenSettings) -> list[Finding]:
    """Try the token and report everything found; the probe objects are destroyed again.

    Nothing is raised for a token that fails; the findings say so. The party's keys must exist.
    """
    findings: list[Finding] = []
    try:
        profile = load_profile(settings.profile)
        findings.append(_profile_finding(profile))
        with open_session(settings) as session:
            findings.append(Finding("login", ok=True, detail=str(session.uri)))
            vault = Vault(session)
            findings.extend(_try(name, probe, vault) for name, probe in _PROBES)
            findings.extend(_exposures(settings, profile))
    except HsmkmError as error:
        findings.append(Finding("session", ok=False, detail=error.message, hint=error.hint, error=error))
    return findings


def _profile_finding(profile: Profile) -> Finding:
    if profile.verified:
        return Finding("profile", ok=True, detail=f"{profile.name}: {profile.source}")
    return Finding("profile", ok=True, detail=f"{profile.name} is not verified: {profile.source}")


def _try(name: str, probe: Callable[[Vault], str | Open], vault: Vault) -> Finding:
    try:
        found = probe(vault)
        if isinstance(found, Open):
            return Finding(name, ok=True, detail=found.detail, standing="open")
        return Finding(name, ok=True, detail=found)
    except HsmkmError as error:
        return Finding(name, ok=False, detail=error.message, hint=error.hint)


def _party_keys(vault: Vault) -> str:
    return f"storage:{vault.storage_key}, integrity:{vault.integrity_key}, attributes as required"


def _generate_and_wrap(vault: Vault) -> str:
    for suite in (0, 2):
        with vault.generate(KeyRole.MASTER, suite) as master, vault.generate(KeyRole.GUEK, suite) as guek:
            if vault.wrap(master, guek) != vault.wrap(master, guek):
                raise FailedProbeError("AES key wrap gave two answers", hint="the mechanism is not RFC 3394")
            with vault.open(KeyRole.GUEK, vault.seal(guek), suite, Use.TRANSPORT) as again:
                if vault.wrap(master, again) != vault.wrap(master, guek):
                    raise FailedProbeError("an unwrapped key is not the wrapped one", hint="do not use this token")
    return "AES-128 and AES-256 generated, wrapped, unwrapped and equal"


def _altered_wrap(vault: Vault) -> str:
    with vault.generate(KeyRole.GUEK, 0) as guek:
        sealed = vault.seal(guek)
    wrapped = bytes((sealed.wrapped[0] ^ 1,)) + sealed.wrapped[1:]
    try:
        vault.open(KeyRole.GUEK, type(sealed)(sealed.storage_key, wrapped), 0, Use.TRANSPORT).destroy()
    except IntegrityError:
        return "an altered wrapped key is refused, and told from a failing token"
    raise FailedProbeError("an altered wrapped key unwraps", hint="do not use this token")


def _protect(vault: Vault) -> str:
    for suite in (0, 2):
        with vault.generate(KeyRole.GUEK, suite) as guek, vault.generate(KeyRole.GAK, suite) as gak:
            sealed = vault.seal(guek), vault.seal(gak)
        with (
            vault.open(KeyRole.GUEK, sealed[0], suite, Use.IN_USE) as guek,
            vault.open(KeyRole.GAK, sealed[1], suite, Use.IN_USE) as gak,
            vault.cipher(guek, gak) as cipher,
        ):
            _protect_with(cipher, suite)
    return "AES-GCM with additional data, and without plaintext; a wrong tag is refused"


def _protect_with(cipher: CipherKey, suite: int) -> None:
    both, authentication = _BOTH | suite, _AUTHENTICATION | suite
    protected = cipher.protect(_IV, both, b"", b"probe")
    tag = cipher.protect(_IV, authentication, b"", b"probe")
    if cipher.unprotect(_IV, both, b"", protected) != b"probe":
        raise FailedProbeError("AES-GCM does not give back what it took", hint="do not use this token")
    cipher.unprotect(_IV, authentication, b"", b"probe" + tag)
    try:
        cipher.unprotect(_IV, both, b"", protected[:-1] + bytes((protected[-1] ^ 1,)))
    except IntegrityError:
        return
    raise FailedProbeError("AES-GCM accepts a wrong tag", hint="do not use this token")


def _mac(vault: Vault) -> str:
    vault.verify(b"probe", vault.mac(b"probe"))
    return "HMAC-SHA256"


def _sign(vault: Vault) -> str:
    for curve, algorithm in (("P-256", ec.ECDSA(SHA256())), ("P-384", ec.ECDSA(SHA384()))):
        label = f"probe:{vault.random(8).hex()}"
        try:
            vault.create_ec_key(label, curve, usage="sign")
            signer = TokenSigner(vault, label)
            signer.public_key().verify(signer.sign(b"probe", algorithm), b"probe", algorithm)
        except InvalidSignature as error:
            raise FailedProbeError("an ECDSA signature does not verify", hint="do not use this token") from error
        finally:
            vault.key_pairs.destroy(label)
    return "ECDSA on P-256 and P-384"


def _agree(vault: Vault) -> str:
    for curve in ("P-256", "P-384"):
        label = f"probe:{vault.random(8).hex()}"
        try:
            vault.create_ec_key(label, curve, usage="derive")
            point, kek = agree_as_sender(vault, vault.public_key(label), b"probe")
            with kek, vault.generate_package_key() as package:
                wrapped = vault.wrap(kek, package)
                with agree_as_recipient(vault, label, point, b"probe") as same:
                    vault.unwrap_package_key(same, wrapped).destroy()
        finally:
            vault.key_pairs.destroy(label)
    return f"ECDH on P-256 and P-384 with the X9.63 KDF ({choose_rung(vault, Kdf.X963)}); both sides agree"


def _agree_dlms(vault: Vault) -> str:
    for suite, curve in ((1, "P-256"), (2, "P-384")):
        label = f"probe:{vault.random(8).hex()}"
        try:
            vault.create_ec_key(label, curve, usage="derive")
            static = curves.encode_raw(vault.public_key(label))
            with (
                make_ephemeral_pair(vault, suite) as pair,
                agree_dlms(vault, pair, static, b"probe", KeyRole.GUEK) as ours,
                agree_dlms(vault, label, pair.point, b"probe", KeyRole.GUEK) as theirs,
            ):
                if vault.seal(ours) != vault.seal(theirs):
                    raise FailedProbeError("two sides of an agreement differ", hint="do not use this token")
        finally:
            vault.key_pairs.destroy(label)
    return f"ECDH with the SP 800-56A KDF ({choose_rung(vault, Kdf.SP800)}); both sides agree"


def _secrets(vault: Vault) -> str:
    with vault.generate_secret(SecretRole.HLS, 16) as secret:
        sealed = vault.seal(secret)
    for digest in Digest:
        digest_secret(vault, sealed, digest, b"probe", b"")
    return "HLS secrets sealed, and hashed with MD5, SHA-1 and SHA-256"


def _readable_unwrap(vault: Vault) -> str | Open:
    if not vault.session.profile.guards.unwrap_template:
        return Open("not enforced by this token: host code can read a key it unwraps")
    with vault.generate(KeyRole.GUEK, 0) as guek:
        sealed = vault.seal(guek)
    readable = vault.session.template(
        attributes.secret_key(KeyType.AES, frozenset(), on_token=False, sensitive=False, extractable=True)
        | {Attribute.MODIFIABLE: not vault.session.profile.guards.unwrapped_unmodifiable}
    )
    storage = vault.keyring.number(STORAGE, sealed.storage_key)
    cryptoki = vault.session.cryptoki
    try:
        made = cryptoki.unwrap(vault.session.profile.mechanisms.aes_key_wrap, storage, sealed.wrapped, readable)
    except TokenRefusedError:
        return "no key under the storage key can be unwrapped readable"
    cryptoki.destroy(made)
    raise FailedProbeError("a key under the storage key was unwrapped readable", hint="make the storage key anew")


def _fixed_usage(vault: Vault) -> str:
    storage = vault.keyring.newest(STORAGE)[1]
    try:
        vault.session.cryptoki.set_attributes(storage, Template({Attribute.DECRYPT: True}))
    except TokenRefusedError:
        return "the storage key gets no further usage"
    raise FailedProbeError("the storage key was given the usage DECRYPT", hint="make a new storage key")


def _copied_usage(vault: Vault) -> str | Open:
    storage = vault.keyring.newest(STORAGE)[1]
    try:
        copy = vault.session.cryptoki.copy(storage, Template({Attribute.DECRYPT: True, Attribute.TOKEN: False}))
    except TokenRefusedError:
        return "no copy of the storage key gets a further usage"
    vault.session.cryptoki.destroy(copy)
    if vault.session.profile.guards.uncopyable:
        raise FailedProbeError("a copy of the storage key has the usage DECRYPT", hint="do not use this token")
    return Open("not enforced by this token: a copy of the storage key can be given another usage")


def _key_in_use(vault: Vault) -> str | Open:
    cryptoki, mechanism = vault.session.cryptoki, vault.session.profile.mechanisms.aes_key_wrap
    with (
        vault.generate(KeyRole.GUEK, 0) as born,
        vault.generate_package_key() as package,
        vault.open(KeyRole.GUEK, vault.seal(born), 0, Use.IN_USE) as used,
    ):
        try:
            cryptoki.wrap(mechanism, package.number(), used.number())
        except TokenRefusedError:
            return "a key in use cannot be wrapped"
    if vault.session.profile.guards.unextractable:
        raise FailedProbeError("a key in use was wrapped", hint="do not use this token")
    return Open("not enforced by this token: a key in use can be wrapped under another")


_PROBES: tuple[tuple[str, Callable[[Vault], str | Open]], ...] = (
    ("party keys", _party_keys),
    ("generate and wrap", _generate_and_wrap),
    ("altered wrapped key", _altered_wrap),
    ("protect an APDU", _protect),
    ("MAC", _mac),
    ("sign", _sign),
    ("agree", _agree),
    ("agree with a meter", _agree_dlms),
    ("secrets", _secrets),
    ("guard: readable unwrap", _readable_unwrap),
    ("guard: fixed usage", _fixed_usage),
    ("guard: fixed usage of a copy", _copied_usage),
    ("guard: key in use", _key_in_use),
)


_ALWAYS_EXPOSED = (
    ("GAK", "in a wiped buffer while APDUs are protected (DLMS requires it)"),
    ("LLS password", "as octets of Python's in the worker, not wiped, while an AARQ or a change carries it"),
    ("dedicated key", "as octets of Python's in the worker, not wiped, while an InitiateRequest carries it"),
)
"""What the standard puts into an APDU, with whatever token."""


def declared(what: str, detail: str, hint: str = "", *, ok: bool = True) -> Finding:
    """Declare a value that is in host memory in clear; not `ok` where the policy or a file's mode forbids it."""
    return Finding(f"exposure: {what}", ok=ok, detail=detail, hint=hint, standing="declared")


def _exposures(settings: TokenSettings, profile: Profile) -> list[Finding]:
    """Declare which values pass through host memory with this token and policy."""
    found = [declared(what, detail) for what, detail in _ALWAYS_EXPOSED]
    for ladder, work in (("kdf_x963", "packages"), ("kdf_sp800", "key agreement with meters")):
        if profile.ladders[ladder][:1] == ("digest-key",):
            detail = "once in a wiped buffer" if settings.kdf_on_host else f"forbidden: no {work}"
            found.append(declared(f"agreed key, {work}", detail, "policy.kdf_on_host", ok=settings.kdf_on_host))
    if "digest-readable" in profile.ladders["digest_md5"][:1]:
        found.append(declared("HLS secret", "readable in the token while a response of HLS 3 is made"))
    guards = profile.guards
    if not (guards.unwrap_template and guards.uncopyable and guards.unextractable):
        found.append(declared("wrapped keys", "readable to whoever holds the token's PIN"))
    return found
