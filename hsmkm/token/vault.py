"""A party's keys in its token: generate, seal, open, wrap, MAC.

The keys of meters are session objects, and rest wrapped (RFC 3394; secrets RFC 5649) under the storage key outside the
token. AES key wrap says nothing of a key's role or length, so both are checked here. The first object made with each
template is read back. What the standard makes the host read, GAKs and LLS passwords, lies under the GAK storage key,
because nothing under the storage key can be unwrapped readable.
"""

from __future__ import annotations

import hmac
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pkcs11 import Attribute

from hsmkm.errors import IntegrityError, PolicyError, RefusedError, TokenRefusedError
from hsmkm.token import attributes, curves
from hsmkm.token.keyring import GAK_STORAGE, INTEGRITY, STORAGE, KeyPairs, Keyring
from hsmkm.token.keys import CipherKey, KeyHandle
from hsmkm.token.macs import Macs
from hsmkm.token.secret import comes_back_whole
from hsmkm.token.signer import BirthSigner, TokenSigner
from hsmkm.token.template import ffi, wipe
from hsmkm.token.types import (
    MAC_MECHANISM,
    SECRET_OCTETS,
    CarrierRole,
    KeyRole,
    Mac,
    MeterRole,
    Sealed,
    SecretRole,
    SessionRole,
    Use,
    key_octets,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, Literal

    from cryptography.hazmat.primitives.asymmetric import ec

    from hsmkm.token.attributes import Attributes, Role
    from hsmkm.token.session import TokenSession
    from hsmkm.token.template import Template

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Birth:
    """What the calls of a new meter key take: to generate it, and to wrap it under a storage key's object handle."""

    mechanism: int
    template: Template
    wrapping: int
    storage: int


@dataclass(frozen=True, slots=True)
class Passage:
    """What a meter key takes on its way from under one key to under another: its template, and how it is wrapped."""

    template: Template
    wrapping: int


PACKAGE_KEY_OCTETS = 32
WRAP_OVERHEAD = 8

# Which keys may lie under which; a client never unwraps under a master key.
_CARRIES: Mapping[Role, frozenset[Role]] = {
    KeyRole.MASTER: frozenset(KeyRole) | frozenset(SecretRole) | {SessionRole.EPHEMERAL},
    CarrierRole.PACKAGE: frozenset(KeyRole) | frozenset(SecretRole),
    CarrierRole.AGREED: frozenset({CarrierRole.PACKAGE}),
}
_READ_IN_HOST = frozenset({KeyRole.GAK, SecretRole.LLS})


_REVEALED = frozenset({SecretRole.LLS, SessionRole.DEDICATED})


class Vault:
    """The keys of one party, over one login; each thread that uses it has a session of its own.

    As an authenticator of the store it makes and verifies MACs under numbered integrity keys.
    """

    mac_mechanism = MAC_MECHANISM

    def __init__(self, session: TokenSession) -> None:
        self.session = session
        self.key_pairs = KeyPairs(session)
        self.keyring = Keyring(session)
        self._mechanisms = session.profile.mechanisms
        self._templates: dict[tuple[Role, Use, int], Template] = {}
        self._proven: set[Template] = set()
        self._signers: dict[str, TokenSigner] = {}

    # Long-lived keys

    def create_keys(self) -> None:
        """Make storage:1, gak-storage:1 and integrity:1 where they are missing.

        Raises IntegrityError if one exists with other attributes than it must have.
        """
        self.keyring.create_missing()

    @property
    def integrity_key(self) -> int:
        """The number of the newest integrity key, the one that mac() uses."""
        return self.keyring.newest(INTEGRITY)[0]

    @property
    def storage_key(self) -> int:
        """The number of the newest storage key, the one that seal() uses for all but GAKs."""
        return self.keyring.newest(STORAGE)[0]

    def create_ec_key(self, label: str, curve: str = "P-256", usage: Literal["sign", "derive"] = "sign") -> bytes:
        """Make an EC key pair of one use in the token; its public point, uncompressed, 65 octets (97 on P-384).

        Raises RefusedError if a key of this label exists.
        """
        self.key_pairs.create(label, curve, usage)
        return curves.encode(self.public_key(label))

    def create_agreement_key(self, label: str, curve: str, at_birth: Callable[[BirthSigner], T]) -> T:
        """Make a key-agreement pair in the token; at its birth it signs what `at_birth` asks, then it only derives.

        Gives what `at_birth` returns. Raises RefusedError if a key of this label exists.
        """
        return self.key_pairs.create_agreement(
            label, curve, lambda public, number: at_birth(BirthSigner(self, label, public, number))
        )

    def has_ec_key(self, label: str) -> bool:
        """Tell whether the token has a private key of this label."""
        return self.key_pairs.exists(label)

    def key_attributes(self, label: str) -> dict[str, bool | None]:
        """Read the attributes of a private key from the token, for a record on paper; None is what it does not store.

        Raises RefusedError if it has no such key.
        """
        return self.key_pairs.told(label)

    def public_key(self, label: str) -> ec.EllipticCurvePublicKey:
        """Read the public half of a key pair; RefusedError if there is none of this label."""
        return self.key_pairs.public(label)

    def sign_raw(self, label: str, data: bytes) -> bytes:
        """Sign with a key pair as DLMS does: r || s, with SHA-256 on P-256 (64 octets), SHA-384 on P-384 (96 octets).

        Raises RefusedError if the token has no such key, IntegrityError if it may do more than sign.
        """
        signer = self._signers.get(label)
        if signer is None:
            signer = self._signers[label] = TokenSigner(self, label)
        return signer.sign_raw(data)

    # Session keys

    def generate(self, role: KeyRole, suite: int) -> KeyHandle:
        """Make a meter's key for its one provisioning: it can be wrapped, and a master key can wrap."""
        return self._generate(role, key_octets(suite))

    def birth_of(self, role: MeterRole, octets: int) -> Birth:
        """Say how a key of this role and length is made in bulk, after reading back a probe of it."""
        is_secret = isinstance(role, SecretRole)
        template = self._template(role, Use.BIRTH, octets)
        if template not in self._proven:
            probe = self.generate_secret(role, octets) if isinstance(role, SecretRole) else self._generate(role, octets)
            probe.destroy()
        mechanisms = self._mechanisms
        _, under = self.keyring.newest(GAK_STORAGE if role in _READ_IN_HOST else STORAGE)
        generating = mechanisms.generic_secret_key_gen if is_secret else mechanisms.aes_key_gen
        return Birth(generating, template, self._wrapping(role), under)

    def passage_of(self, role: MeterRole) -> Passage:
        """Say how keys of this role are taken in bulk from under one key to under another."""
        return Passage(self._template(role, Use.TRANSPORT), self._wrapping(role))

    def storage_handle(self, role: MeterRole, number: int = 0) -> int:
        """Give the object handle of the numbered storage key that a key of this role lies under, or of the newest.

        Raises IntegrityError if the token lacks it.
        """
        kind = GAK_STORAGE if role in _READ_IN_HOST else STORAGE
        return self.keyring.number(kind, number) if number else self.keyring.newest(kind)[1]

    def macs(self, number: int = 0) -> Macs:
        """Make MACs in bulk with a numbered integrity key, or the newest, in the calling thread."""
        key = self.keyring.number(INTEGRITY, number) if number else self.keyring.newest(INTEGRITY)[1]
        return Macs(self.session.cryptoki, self._mechanisms.sha256_hmac, key)

    def lend(self, package_key: KeyHandle) -> Sealed:
        """Wrap a new package key for another process of this token, which works on the same package."""
        if package_key.role is not CarrierRole.PACKAGE:
            raise PolicyError(f"a {package_key.role} key is not lent", hint="only a package's key is")
        number, under = self.keyring.newest(STORAGE)
        return Sealed(number, self._wrap(under, package_key))

    def borrow(self, lent: Sealed) -> KeyHandle:
        """Unwrap a package key that another process of this token lent; it only wraps. IntegrityError for any other."""
        under = self.keyring.number(STORAGE, lent.storage_key)
        return self._unwrap(under, lent.wrapped, CarrierRole.PACKAGE, Use.BIRTH, PACKAGE_KEY_OCTETS)

    def generate_secret(self, role: SecretRole, octets: int) -> KeyHandle:
        """Make an LLS password or HLS secret of random octets; RefusedError for a length other than 8, 16 ... 64."""
        template = self._template(role, Use.BIRTH, _secret_octets(role, octets))
        number = self.session.cryptoki.generate_key(self._mechanisms.generic_secret_key_gen, template)
        return self._made(number, template, role, Use.BIRTH, octets)

    def generate_dedicated_key(self, suite: int) -> KeyHandle:
        """Make the key of one association, in use and readable: the InitiateRequest carries it (see `reveal`)."""
        return self._generate(SessionRole.DEDICATED, key_octets(suite), Use.IN_USE)

    def generate_ephemeral_key(self, suite: int) -> KeyHandle:
        """Make the key of one general-ciphering exchange, which can be wrapped under the master key."""
        return self._generate(SessionRole.EPHEMERAL, key_octets(suite))

    def generate_package_key(self) -> KeyHandle:
        """Make the AES-256 key under which a package's keys are wrapped, and that is wrapped once itself."""
        return self._generate(CarrierRole.PACKAGE, PACKAGE_KEY_OCTETS)

    def seal(self, key: KeyHandle) -> Sealed:
        """Wrap a key under the newest storage key, a GAK or LLS password under the newest GAK storage key."""
        if key.role not in _CARRIES[CarrierRole.PACKAGE]:
            raise PolicyError(f"a {key.role} key is not stored", hint="only the keys of meters are")
        number, under = self.keyring.newest(GAK_STORAGE if key.role in _READ_IN_HOST else STORAGE)
        return Sealed(number, self._wrap(under, key))

    def open(self, role: MeterRole, sealed: Sealed, suite: int, use: Use) -> KeyHandle:
        """Unwrap a sealed key for transport or for use; a secret's length is its own, whatever the suite.

        Raises IntegrityError if the octets do not unwrap or have another length than the suite's keys, or if the token
        lacks the storage key they name.
        """
        if use is Use.BIRTH:
            raise PolicyError("a key is born once", hint="open it for transport or for use")
        under = self.keyring.number(GAK_STORAGE if role in _READ_IN_HOST else STORAGE, sealed.storage_key)
        return self._unwrap(under, sealed.wrapped, role, use, _wrapped_octets(role, suite, sealed.wrapped))

    def reseal(self, role: MeterRole, sealed: Sealed, suite: int) -> Sealed:
        """Bring a sealed key under the newest storage key, inside the token; raises as `open`."""
        with self.open(role, sealed, suite, Use.TRANSPORT) as key:
            return self.seal(key)

    def wrap(self, under: KeyHandle, key: KeyHandle) -> bytes:
        """Wrap a key (RFC 3394; secrets RFC 5649) under a master, package or agreed key; 8 octets longer than it."""
        if key.role not in _CARRIES.get(under.role, frozenset()):
            raise PolicyError(f"a {key.role} key does not travel under a {under.role} key")
        if key.octets > under.octets and not isinstance(key.role, SecretRole):
            raise PolicyError("a key does not travel under a shorter one", hint="use keys of one suite")
        return self._wrap(under.number(), key)

    def unwrap(self, under: KeyHandle, wrapped: bytes, role: MeterRole, suite: int) -> KeyHandle:
        """Unwrap a meter's key from a package, for transport; IntegrityError if it does not fit key or suite."""
        if under.role is not CarrierRole.PACKAGE:
            raise PolicyError(f"nothing is unwrapped under a {under.role} key", hint="only a package is opened")
        octets = _wrapped_octets(role, suite, wrapped)
        key = self._unwrap(under.number(), wrapped, role, Use.TRANSPORT, octets)
        if isinstance(role, SecretRole) and not comes_back_whole(self, role, key):
            key.destroy()
            raise IntegrityError(f"the length of an {role} secret is no multiple of 8", hint="the sender must renew it")
        return key

    def unwrap_package_key(self, kek: KeyHandle, wrapped: bytes) -> KeyHandle:
        """Unwrap a package's key under the agreed key; it only unwraps."""
        if kek.role is not CarrierRole.AGREED:
            raise PolicyError(f"a package's key does not travel under a {kek.role} key")
        return self._unwrap(kek.number(), wrapped, CarrierRole.PACKAGE, Use.IN_USE, PACKAGE_KEY_OCTETS)

    def import_key(self, role: MeterRole, suite: int, value: bytearray) -> KeyHandle:
        """Take in a key the host has, for transport, and wipe `value` whether it goes well or not.

        Raises RefusedError for a length that is not the suite's, or that a secret cannot have.
        """
        try:
            if isinstance(role, SecretRole):
                _secret_octets(role, len(value))
            elif len(value) != key_octets(suite):
                raise RefusedError(f"a key of suite {suite} has {key_octets(suite)} octets, not {len(value)}")
            listed = attributes.session_key(role, Use.TRANSPORT) | {Attribute.VALUE: ffi.from_buffer(value)}
            template = self.session.template(listed)
            return self._made(self.session.cryptoki.create(template), template, role, Use.TRANSPORT, len(value))
        finally:
            value[:] = bytes(len(value))

    def cipher(self, key: KeyHandle, gak: KeyHandle) -> CipherKey:
        """Combine an encryption key and an authentication key in use; GAK is read into memory that close() wipes."""
        gak.number()
        key.number()
        return CipherKey(self.session, key, gak)

    @contextmanager
    def reveal(self, key: KeyHandle) -> Iterator[memoryview]:
        """Show the value of a dedicated key or an LLS password in use, in memory that is wiped at the end.

        The standard puts both into an APDU; PolicyError for any other key.
        """
        if key.role not in _REVEALED or key.use is not Use.IN_USE:
            raise PolicyError(f"a {key.role} key is not shown", hint="an LLS password and a dedicated key in use are")
        memory = ffi.new("unsigned char[]", key.octets)
        try:
            if self.session.cryptoki.read_into(key.number(), Attribute.VALUE, memory, key.octets) != key.octets:
                raise IntegrityError(f"a {key.role} key has another length than it was wrapped with")
            yield memoryview(ffi.buffer(memory))
        finally:
            wipe(memory)

    def destroy(self, key: KeyHandle) -> None:
        """Destroy a session key; one that is gone with its generation stays gone."""
        key.destroy()

    # MACs and randomness

    def mac(self, data: bytes) -> Mac:
        """Make an HMAC-SHA256 (32 octets) with the newest integrity key."""
        number, key = self.keyring.newest(INTEGRITY)
        return Mac(number, self.keyring.mac(key, data))

    def verify(self, data: bytes, mac: Mac) -> None:
        """Check a MAC; IntegrityError if it does not fit or its key is not in this token."""
        key = self.keyring.number(INTEGRITY, mac.key_number)
        if not hmac.compare_digest(self.keyring.mac(key, data), mac.value):
            raise IntegrityError("a MAC does not fit its data", hint="the data was altered, or belongs elsewhere")

    def still_there(self) -> None:
        """Look for the keys again; TokenUnreachableError where those for new work were retired meanwhile."""
        self.keyring.still_there()

    def random(self, count: int) -> bytes:
        """Take random octets from the token."""
        return self.session.cryptoki.random(count)

    # The calls below

    def _wrap(self, under: int, key: KeyHandle) -> bytes:
        if key.use is Use.IN_USE:
            raise PolicyError(f"a {key.role} key in use is not wrapped", hint="open it for transport")
        wrapped = self.session.cryptoki.wrap(self._wrapping(key.role), under, key.number())
        if len(wrapped) != key.octets + WRAP_OVERHEAD:
            raise TokenRefusedError(f"the token wrapped a key of {key.octets} octets into {len(wrapped)}")
        return wrapped

    def _unwrap(self, under: int, wrapped: bytes, role: Role, use: Use, octets: int) -> KeyHandle:
        if len(wrapped) != octets + WRAP_OVERHEAD:
            raise IntegrityError(
                f"a wrapped {role} key has {len(wrapped)} octets instead of {octets + WRAP_OVERHEAD}",
                hint="it is of another suite, or was altered",
            )
        template = self._template(role, use)
        number = self.session.cryptoki.unwrap(self._wrapping(role), under, wrapped, template)
        return self._made(number, template, role, use, octets)

    def _wrapping(self, role: Role) -> int:
        return self._mechanisms.aes_key_wrap_pad if isinstance(role, SecretRole) else self._mechanisms.aes_key_wrap

    def _generate(self, role: Role, octets: int, use: Use = Use.BIRTH) -> KeyHandle:
        template = self._template(role, use, octets)
        number = self.session.cryptoki.generate_key(self._mechanisms.aes_key_gen, template)
        return self._made(number, template, role, use, octets)

    def _template(self, role: Role, use: Use, octets: int = 0) -> Template:
        found = self._templates.get((role, use, octets))
        if found is None:
            if role is CarrierRole.PACKAGE and not octets:
                listed = attributes.carrier_key(Attribute.UNWRAP if use is Use.IN_USE else Attribute.WRAP)
            else:
                listed = attributes.session_key(role, use)
            if octets:
                listed[Attribute.VALUE_LEN] = octets
            else:
                listed[Attribute.MODIFIABLE] = not self.session.profile.guards.unwrapped_unmodifiable
            found = self._templates[role, use, octets] = self.session.template(listed)
        return found

    def _made(self, number: int, template: Template, role: Role, use: Use, octets: int) -> KeyHandle:
        """Make the handle of a new object, after reading back the first object of its template.

        A template that holds a value serves one object only, and is not remembered.
        """
        self.prove(number, template, role)
        return KeyHandle(self.session, number, role, use, octets)

    def prove(self, number: int, template: Template, role: Role) -> None:
        """Read back the first object of a template; TokenRefusedError, and it is gone, where it is another one."""
        if template not in self._proven:
            wrong = self.session.cryptoki.differences(number, template)
            if wrong:
                self.session.cryptoki.destroy(number)
                raise TokenRefusedError(f"the token made a {role} key with other attributes: {', '.join(wrong)}")
            if Attribute.VALUE not in template.attributes:
                self._proven.add(template)

    def adopt(self, listed: Attributes, value: Any, role: Role, use: Use = Use.IN_USE) -> KeyHandle:  # noqa: ANN401 - C memory
        """Make a key of a value in C memory, which stays its owner's to wipe."""
        template = self.session.template(listed | {Attribute.VALUE: value})
        number = self.session.cryptoki.create(template)
        return self._made(number, template, role, use, ffi.sizeof(value))

    def adopt_object(self, number: int, template: Template, role: Role, use: Use, octets: int) -> KeyHandle:
        """Make the handle of a key that the token derived, after reading it back."""
        return self._made(number, template, role, use, octets)


def _secret_octets(role: SecretRole, octets: int) -> int:
    if octets not in SECRET_OCTETS:
        raise RefusedError(
            f"an {role} secret of {octets} octets is refused", hint="it has 8 to 64 octets, a multiple of 8"
        )
    return octets


def _wrapped_octets(role: MeterRole, suite: int, wrapped: bytes) -> int:
    """Tell the length a wrapped key must have: its suite's, or a secret's own."""
    if not isinstance(role, SecretRole):
        return key_octets(suite)
    octets = len(wrapped) - WRAP_OVERHEAD
    if octets not in SECRET_OCTETS:
        raise IntegrityError(f"a wrapped {role} secret has {len(wrapped)} octets", hint="it was altered")
    return octets
