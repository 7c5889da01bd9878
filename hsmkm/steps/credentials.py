"""What an association with a meter rests on, from token and store: keys, secrets, signing keys and certificates.

Digests over an HLS secret and signatures are made in the token. Two values pass through this process, because the
standard puts them into an APDU: an LLS password, and the dedicated key of one association.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.dlms.channel import Form, KeySource
from hsmkm.dlms.hls import DIGESTS, DigestAlgorithm
from hsmkm.dlms.protection import AUTHENTICATED_AND_ENCRYPTED, UNPROTECTED, Protection, SecurityPolicy
from hsmkm.dlms.settings import DedicatedKey
from hsmkm.dlms.types import Mechanism
from hsmkm.errors import RefusedError
from hsmkm.meter_model import MeterModel
from hsmkm.pki.certificates import public_key
from hsmkm.pki.profiles import DIGITAL_SIGNATURE
from hsmkm.pki.slots import Slot, curve_for
from hsmkm.steps.meter_certificates import meter_certificate
from hsmkm.steps.party import Party
from hsmkm.store.key_set import KeySet
from hsmkm.token.keys import CipherKey, KeyHandle
from hsmkm.token.secret import digest_secret
from hsmkm.token.signature import verify_raw
from hsmkm.token.types import Digest, KeyRole, MeterRole, Sealed, SecretRole, Use
from hsmkm.token.vault import Vault


@dataclass(frozen=True, slots=True)
class Pair:
    """The key sets whose GUEK, whose GAK and whose LLS or HLS secret are taken to be in force; usually all the same.

    `settled` is the one key set that is in force beyond doubt, None while keys are changed or found out: then APDUs are
    under the GUEK, which is what is to be proved, and needs neither certificates nor a master key in the meter.
    """

    guek: KeySet
    gak: KeySet
    secret: KeySet
    settled: KeySet | None = None

    @classmethod
    def of(cls, key_set: KeySet) -> Pair:
        """Take all from one set, to change keys or to find out about them."""
        return cls(key_set, key_set, key_set)

    @classmethod
    def in_force(cls, key_set: KeySet) -> Pair:
        """Take all from one set, where APDUs are under the key that the model names.

        For exchanges that change no keys, and for the way back, which must not need the GUEK.
        """
        return cls(key_set, key_set, key_set, key_set)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Everything that one association rests on; `key` is None where the model's meters take APDUs in clear.

    `general` is there where the model's form is general-ciphering.
    """

    key: CipherKey | None = field(repr=False)
    password: TokenPassword | None = None
    secret: TokenSecret | None = None
    signer: TokenSigningKey | None = None
    verifier: CertifiedKey | None = None
    dedicated: DedicatedKey | None = None
    general: KeySource | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TokenPassword:
    """An LLS password, which lies sealed until the AARQ needs it; fulfils `hsmkm.dlms.hls.Password`."""

    vault: Vault = field(repr=False)
    sealed: Sealed = field(repr=False)

    def reveal(self) -> bytes:
        """Give the password."""
        with (
            self.vault.open(SecretRole.LLS, self.sealed, 0, Use.IN_USE) as key,
            self.vault.reveal(key) as value,
        ):
            return bytes(value)


@dataclass(frozen=True, slots=True)
class TokenSecret:
    """An HLS secret, hashed in the token; fulfils `hsmkm.dlms.hls.SecretDigest`."""

    vault: Vault = field(repr=False)
    sealed: Sealed = field(repr=False)

    def digest(self, algorithm: DigestAlgorithm, before: bytes, after: bytes) -> bytes:
        """Give the digest of before || secret || after; PolicyError where this token makes no such digest."""
        return digest_secret(self.vault, self.sealed, Digest(algorithm.value), before, after)


@dataclass(frozen=True, slots=True)
class TokenSigningKey:
    """Our own key for digital signatures, in the token; fulfils `hsmkm.dlms.hls.Signer`."""

    vault: Vault = field(repr=False)
    label: str

    def sign(self, data: bytes) -> bytes:
        """Give r || s; 64 octets on P-256, 96 on P-384."""
        return self.vault.sign_raw(self.label, data)


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """The meter's key for digital signatures, from its certificate; fulfils `hsmkm.dlms.hls.Verifier`."""

    public: ec.EllipticCurvePublicKey

    def verify(self, data: bytes, raw: bytes) -> None:
        """Check r || s; raises IntegrityError."""
        verify_raw(self.public, data, raw)


class TokenDedicatedKey:
    """A key made in the token for one association, and gone with it; fulfils `hsmkm.dlms.settings.DedicatedKey`."""

    __slots__ = ("_key", "_vault", "cipher")

    def __init__(self, vault: Vault, key: KeyHandle, cipher: CipherKey) -> None:
        self._vault = vault
        self._key = key
        self.cipher = cipher

    def reveal(self) -> bytes:
        """Give its value, which travels under the GUEK."""
        with self._vault.reveal(self._key) as value:
            return bytes(value)


def open_key(party: Party, key_set: KeySet, role: MeterRole, use: Use) -> KeyHandle:
    """Open one key of a verified key set in the token; RefusedError where the set does not hold it."""
    return party.vault.open(role, sealed_key(key_set, role), key_set.suite, use)


def sealed_key(key_set: KeySet, role: MeterRole) -> Sealed:
    """Give one key of a key set as it lies in the store; RefusedError where the set does not hold it."""
    return Sealed(key_set.storage_key, key_set.key(role).wrapped)


def new_key(party: Party, model: MeterModel, role: MeterRole, suite: int) -> KeyHandle:
    """Make a key of the suite, or a secret as long as the model says, in the token."""
    if isinstance(role, SecretRole):
        return party.vault.generate_secret(role, model.authentication.secret_octets)
    return party.vault.generate(role, suite)


def secret_roles(model: MeterModel) -> tuple[SecretRole, ...]:
    """Name the secret that the model's mechanism takes, if any."""
    mechanism = Mechanism(model.authentication.mechanism)
    if mechanism is Mechanism.LLS:
        return (SecretRole.LLS,)
    return (SecretRole.HLS,) if mechanism in DIGESTS else ()


def policy_of(model: MeterModel) -> SecurityPolicy:
    """Give what protects the APDUs of both directions."""
    value = model.protection.policy
    return AUTHENTICATED_AND_ENCRYPTED if value is None else SecurityPolicy.parse(model.security_setup.version, value)


def is_ciphered(model: MeterModel) -> bool:
    """Tell whether associations use GUEK and GAK at all; GMAC does even where APDUs travel in clear."""
    return model.authentication.mechanism == Mechanism.HLS_GMAC or policy_of(model) != UNPROTECTED


def proves_keys(model: MeterModel) -> bool:
    """Tell whether an association shows that the meter has GUEK and GAK: by GMAC, or by the tags of its answers."""
    policy = policy_of(model)
    tagged = policy.request & policy.response & Protection.AUTHENTICATED
    return model.authentication.mechanism == Mechanism.HLS_GMAC or bool(tagged)


def refuse_unproved(model: MeterModel) -> None:
    """Raise RefusedError where no association can show which keys a meter has, or a secret would travel in clear."""
    if not proves_keys(model):
        reason = f"an association with a meter of model {model.name} does not prove its keys"
        raise RefusedError(reason, hint="key it under mechanism 5, or a policy that authenticates both directions")
    policy = policy_of(model)
    if secret_roles(model) and not (policy.request & policy.response).covers(Protection.CIPHERED):
        reason = f"the secrets of model {model.name} change only where everything is authenticated and encrypted"
        raise RefusedError(reason, hint="see protection.policy of the model")


@contextmanager
def credentials(party: Party, model: MeterModel, system_title: bytes, pair: Pair) -> Iterator[Credentials]:
    """Open what an association takes; RefusedError where a secret or the meter's certificate is missing."""
    mechanism = Mechanism(model.authentication.mechanism)
    with ExitStack() as stack:
        key: CipherKey | None = None
        dedicated: DedicatedKey | None = None
        if is_ciphered(model):
            guek = stack.enter_context(open_key(party, pair.guek, KeyRole.GUEK, Use.IN_USE))
            gak = stack.enter_context(open_key(party, pair.gak, KeyRole.GAK, Use.IN_USE))
            key = stack.enter_context(party.vault.cipher(guek, gak))
            if Form(model.protection.form).dedicated:
                dedicated = _dedicated(party.vault, pair.guek.suite, gak, stack)
        sealed = {role: sealed_key(pair.secret, role) for role in secret_roles(model)}
        policy = policy_of(model)
        signs = mechanism is Mechanism.HLS_ECDSA or (policy.request | policy.response) & Protection.SIGNED
        suite = pair.guek.suite
        yield Credentials(
            key=key,
            password=TokenPassword(party.vault, sealed[SecretRole.LLS]) if SecretRole.LLS in sealed else None,
            secret=TokenSecret(party.vault, sealed[SecretRole.HLS]) if SecretRole.HLS in sealed else None,
            signer=TokenSigningKey(party.vault, _slot(suite).name) if signs else None,
            verifier=meter_key(party, system_title, suite) if signs else None,
            dedicated=dedicated,
        )


def _dedicated(vault: Vault, suite: int, gak: KeyHandle, stack: ExitStack) -> TokenDedicatedKey:
    key = stack.enter_context(vault.generate_dedicated_key(suite))
    return TokenDedicatedKey(vault, key, stack.enter_context(vault.cipher(key, gak)))


def _slot(suite: int) -> Slot:
    return Slot(DIGITAL_SIGNATURE.name, curve_for((suite,)))


def meter_key(party: Party, system_title: bytes, suite: int) -> CertifiedKey:
    """Find the meter's certified key for digital signatures on its suite's curve.

    Raises RefusedError where there is none, or where its certificate is not accepted any more.
    """
    title = system_title.hex().upper()
    return CertifiedKey(public_key(meter_certificate(party, title, DIGITAL_SIGNATURE.name, suite)))
