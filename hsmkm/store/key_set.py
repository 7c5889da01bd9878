"""A key set as a value: the keys of one meter, one of its security setups and one client, in one generation.

It is immutable and bound to its meter by a MAC over one canonical encoding: another meter's set, an exchanged role, a
shortened list of keys or another storage key's number does not fit it. Nothing here reads or writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store.canonical import MECHANISM, encode
from hsmkm.store.times import to_seconds
from hsmkm.token.types import KEY_OCTETS, SECRET_OCTETS, KeyRole, Mac, MeterRole, SecretRole

if TYPE_CHECKING:
    from hsmkm.store.meter import Meter
    from hsmkm.store.store import Authenticator

LABEL = "hsmkm key set/1"
TITLE_OCTETS = 8
IDENTITY_OCTETS = 16
WRAP_OCTETS = 8
"""What AES key wrap adds (RFC 3394; RFC 5649 to a secret)."""

MAX_GENERATION_STEP = 10_000
"""How far whoever takes a package lets a generation rise at once: numbers cannot be used up by one package."""


class KeyState(StrEnum):
    """Where a key set is in its life (NIST SP 800-57 part 1 rev. 5, section 7)."""

    PRE_ACTIVE = "pre-active"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DEACTIVATED = "deactivated"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"


ROLES: dict[int, MeterRole] = {
    0: KeyRole.GUEK,
    1: KeyRole.GBEK,
    2: KeyRole.GAK,
    3: KeyRole.MASTER,
    4: SecretRole.LLS,
    5: SecretRole.HLS,
}
"""Numbers of the roles in stored rows, 0 to 3 as in key_transfer (IEC 62056-6-2, Security setup); never given anew."""
ROLE_NUMBERS = {role: number for number, role in ROLES.items()}
ROLE_NAMES = {role.value: role for role in ROLES.values()}
SHARED_BY_GROUP = (KeyRole.GAK, KeyRole.GBEK)
"""What the members of a broadcast group have in common."""
STATE_NUMBERS = {state: number for number, state in enumerate(KeyState)}
STATES = tuple(KeyState)


@dataclass(frozen=True, order=True, slots=True)
class KeySetRef:
    """Which key set: 8 octets of system title, security setup, client SAP, and generation (0: the model's initial)."""

    system_title: bytes
    security_setup: int
    client: int
    generation: int

    def __str__(self) -> str:
        title = self.system_title.hex().upper()
        return f"{title}/{self.security_setup}/{self.client}/{self.generation}"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One key: its role, the 16 octets it was born with, and its wrapping under the set's storage key."""

    role: MeterRole
    identity: bytes
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class KeySet:
    """All keys of a set, sorted by role; `state` is the first state, later ones are rows of their own.

    `batch` is the sequence of the audit record that the set came with and is given by the store. The MAC does not cover
    it: it is not known yet when a worker makes the set.
    """

    ref: KeySetRef
    suite: int
    storage_key: int
    state: KeyState
    keys: tuple[StoredKey, ...]
    mac: Mac | None = None
    batch: int = 0
    destroy_after: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(sorted(self.keys, key=_role)))
        check_keys(str(self.ref), self.suite, self.keys)
        if len(self.ref.system_title) != TITLE_OCTETS:
            raise RefusedError(f"key set {self.ref}: a system title has {TITLE_OCTETS} octets")

    def key(self, role: MeterRole) -> StoredKey:
        """Return the key of a role; raises RefusedError if the set has none."""
        for key in self.keys:
            if key.role is role:
                return key
        raise RefusedError(f"key set {self.ref} has no {role} key")

    def has(self, role: MeterRole) -> bool:
        """Tell whether the set has a key of this role."""
        return any(key.role is role for key in self.keys)


def check_keys(owner: str, suite: int, keys: tuple[StoredKey, ...]) -> None:
    """Raise RefusedError unless roles differ and every length fits the suite."""
    reasons = []
    if suite not in KEY_OCTETS:
        raise RefusedError(f"key set {owner}: there is no security suite {suite}")
    if not keys or len({key.role for key in keys}) != len(keys):
        reasons.append("each role has one key, and there is at least one")
    wrapped = KEY_OCTETS[suite] + WRAP_OCTETS
    for key in keys:
        if len(key.identity) != IDENTITY_OCTETS:
            reasons.append(f"{key.role}: an identity has {IDENTITY_OCTETS} octets, not {len(key.identity)}")
        if isinstance(key.role, SecretRole):
            if len(key.wrapped) - WRAP_OCTETS not in SECRET_OCTETS:
                reasons.append(f"{key.role}: a secret has 8 to 64 octets, a multiple of 8")
        elif len(key.wrapped) != wrapped:
            reasons.append(f"{key.role}: a wrapped key of suite {suite} has {wrapped} octets, not {len(key.wrapped)}")
    if reasons:
        raise RefusedError(f"key set {owner} is not well formed: {reasons[0]}", reasons)


def pack(keys: tuple[StoredKey, ...]) -> bytes:
    """Write keys as they are stored, 42 octets for one of 16: role number, identity, length of wrapping, wrapping."""
    return b"".join(
        bytes((ROLE_NUMBERS[key.role],)) + key.identity + len(key.wrapped).to_bytes(1, "big") + key.wrapped
        for key in keys
    )


def unpack(packed: bytes, row: str) -> tuple[StoredKey, ...]:
    """Read what `pack` wrote; raises IntegrityError, naming the row, for anything else."""
    try:
        return tuple(_stored_keys(packed))
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{row}: its keys cannot be read", hint="hsmkm store check names every one") from error


def named(keys: tuple[StoredKey, ...]) -> Iterator[bytes | str]:
    """Spell keys out for a MAC: for each its role by name, its identity and its wrapping."""
    for key in keys:
        yield key.role.value
        yield key.identity
        yield key.wrapped


def encode_key_set(key_set: KeySet, meter: Meter, key_number: int) -> bytes:
    """Encode what the MAC covers: the set, the meter it belongs to, the mechanism and the integrity key's number."""
    ref = key_set.ref
    return encode(
        LABEL,
        MECHANISM,
        key_number,
        ref.system_title,
        ref.security_setup,
        ref.client,
        ref.generation,
        meter.serial,
        meter.model,
        meter.order,
        meter.suite,
        key_set.suite,
        key_set.storage_key,
        key_set.state.value,
        len(key_set.keys),
        *named(key_set.keys),
        *(() if key_set.destroy_after is None else (to_seconds(key_set.destroy_after),)),
    )


def authenticate(authenticator: Authenticator, key_set: KeySet, meter: Meter) -> KeySet:
    """Return the set with the MAC that binds it to its meter."""
    _belongs(key_set, meter)
    number = authenticator.integrity_key
    mac = authenticator.mac(encode_key_set(key_set, meter, number))
    if mac.key_number != number:
        raise IntegrityError("the integrity key changed while a key set was being authenticated")
    return replace(key_set, mac=mac)


def verify(authenticator: Authenticator, key_set: KeySet, meter: Meter) -> None:
    """Raise IntegrityError unless the set's MAC fits it and its meter."""
    _belongs(key_set, meter)
    if key_set.mac is None:
        raise IntegrityError(f"key set {key_set.ref} carries no mac")
    authenticator.verify(encode_key_set(key_set, meter, key_set.mac.key_number), key_set.mac)


def _belongs(key_set: KeySet, meter: Meter) -> None:
    if key_set.ref.system_title != meter.system_title:
        raise IntegrityError(f"key set {key_set.ref} belongs to another meter")


def _stored_keys(packed: bytes) -> Iterator[StoredKey]:
    at = 0
    while at < len(packed):
        role = ROLES[packed[at]]
        wrapped = at + 1 + IDENTITY_OCTETS + 1
        end = wrapped + packed[wrapped - 1]
        if end > len(packed):
            raise ValueError("cut short")
        yield StoredKey(role, packed[at + 1 : wrapped - 1], packed[wrapped:end])
        at = end


def _role(key: StoredKey) -> str:
    return key.role.value
