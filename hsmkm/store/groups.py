"""Broadcast groups: meters that share one GBEK and one GAK, the keys of each group by generation, and its members.

The GAK is shared too: the additional authenticated data of a broadcast begins with it (IEC 62056-5-3 clause 5.7.2), so
one tag fits only meters of one GAK. A group's keys lie here before any member's key set carries them, with the same
identities. What a member holds is not written down here: its key sets tell it.

| state of keys | meaning                                                              |
|---------------|----------------------------------------------------------------------|
| next          | members are learning them; never used for a broadcast                |
| current       | broadcasts are protected with them                                   |
| retired       | in force once                                                        |
| abandoned     | never in force: somebody holds them who must not                     |

Another party's group, known from its packages, is named PARTY/NAME and has members only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hsmkm.errors import InputError, RefusedError
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.canonical import Value
from hsmkm.store.key_set import SHARED_BY_GROUP, KeySet, StoredKey, check_keys, pack, unpack
from hsmkm.store.pages import rows_of
from hsmkm.store.schema import broadcast_groups, group_keys, group_members
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.token.types import KeyRole

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
SHARED_ROLES = SHARED_BY_GROUP
"""What the members of a group have in common."""

ROWS = AuthenticatedTable(
    "hsmkm broadcast group/1", broadcast_groups, ("name",), ("name", "suite", "client", "origin", "renewal")
)
KEY_ROWS = AuthenticatedTable(
    "hsmkm group keys/1",
    group_keys,
    ("group", "generation"),
    ("group", "generation", "storage_key", "keys", "state"),
)
MEMBER_ROWS = AuthenticatedTable(
    "hsmkm group member/1",
    group_members,
    ("group", "system_title", "security_setup", "client"),
    ("group", "system_title", "security_setup", "client", "state"),
)


class GroupKeyState(StrEnum):
    """Where a generation of a group's keys is in its life."""

    NEXT = "next"
    CURRENT = "current"
    RETIRED = "retired"
    ABANDONED = "abandoned"


class MemberState(StrEnum):
    """Whether a meter is in a group, or was."""

    MEMBER = "member"
    REMOVED = "removed"


class Renewal(StrEnum):
    """Why a group's keys must be renewed; with COMPROMISED nothing is broadcast until they are."""

    NONE = ""
    REMOVED = "removed"
    COMPROMISED = "compromised"


@dataclass(frozen=True, slots=True)
class Group:
    """A group; `client` is the SAP that broadcasts come from, `origin` the party that told us of it, if not ours."""

    name: str
    suite: int
    client: int
    origin: str = ""
    renewal: Renewal = Renewal.NONE


@dataclass(frozen=True, slots=True)
class GroupKeys:
    """One generation of a group's GBEK and GAK, wrapped under storage key number `storage_key`."""

    group: str
    generation: int
    storage_key: int
    keys: tuple[StoredKey, ...]
    state: GroupKeyState

    def key(self, role: KeyRole) -> StoredKey:
        """Give the key of a role; raises RefusedError if there is none."""
        for key in self.keys:
            if key.role is role:
                return key
        raise RefusedError(f"generation {self.generation} of group {self.group} has no {role} key")

    def held_by(self, key_set: KeySet | None) -> bool:
        """Tell whether a key set carries these very keys, by identity."""
        return key_set is not None and all(
            key_set.has(key.role) and key_set.key(key.role).identity == key.identity for key in self.keys
        )

    def touches(self, key_set: KeySet) -> bool:
        """Tell whether a key set carries any of these keys."""
        return not {key.identity for key in self.keys}.isdisjoint(key.identity for key in key_set.keys)


@dataclass(frozen=True, slots=True)
class Member:
    """One meter's place in a group: the security setup and client whose key set carries the group's keys."""

    group: str
    system_title: bytes
    security_setup: int
    client: int
    state: MemberState = MemberState.MEMBER

    @property
    def title(self) -> str:
        """The system title as 16 capital hex digits."""
        return self.system_title.hex().upper()


def check_name(name: str) -> None:
    """Raise InputError for a name that a group cannot have."""
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for a group", hint="1 to 32 of a to z, 0 to 9 and -")


def add(tx: Transaction, group: Group) -> None:
    """Add a group; raises RefusedError if there is one of this name."""
    ROWS.insert(
        tx,
        {
            "name": group.name,
            "suite": group.suite,
            "client": group.client,
            "origin": group.origin,
            "renewal": group.renewal.value,
        },
    )


def find(tx: Transaction, name: str) -> Group | None:
    """Find a group by name."""
    row = ROWS.fetch(tx, name=name)
    return None if row is None else _group(row)


def require(tx: Transaction, name: str) -> Group:
    """Find a group by name; raises RefusedError where there is none."""
    found = find(tx, name)
    if found is None:
        raise RefusedError(f"there is no group {name}", hint="hsmkm group list")
    return found


def listing(tx: Transaction) -> list[Group]:
    """List all groups by name."""
    return [_group(row) for row in ROWS.rows(tx, ROWS.everything())]


def set_renewal(tx: Transaction, name: str, renewal: Renewal) -> None:
    """Say whether, and why, the group's keys must be renewed."""
    row = ROWS.fetch(tx, name=name)
    if row is None:
        raise RefusedError(f"there is no group {name}")
    ROWS.replace(tx, row, {"renewal": renewal.value})


def add_keys(tx: Transaction, suite: int, keys: GroupKeys) -> None:
    """Store a generation of keys; raises RefusedError where their lengths do not fit the suite."""
    check_keys(f"{keys.group}/{keys.generation}", suite, keys.keys)
    KEY_ROWS.insert(
        tx,
        {
            "group": keys.group,
            "generation": keys.generation,
            "storage_key": keys.storage_key,
            "keys": pack(keys.keys),
            "state": keys.state.value,
        },
    )


def move_keys(tx: Transaction, keys: GroupKeys, state: GroupKeyState) -> None:
    """Move a generation of keys on to another state."""
    row = KEY_ROWS.fetch(tx, group=keys.group, generation=keys.generation)
    if row is None:
        raise RefusedError(f"group {keys.group} has no generation {keys.generation}")
    KEY_ROWS.replace(tx, row, {"state": state.value})


def generations(tx: Transaction, name: str) -> list[GroupKeys]:
    """Read and verify every generation of a group's keys, oldest first."""
    return [_keys(row) for row in KEY_ROWS.rows(tx, KEY_ROWS.everything().where(group_keys.c.group == name))]


def every_generation(tx: Transaction) -> list[GroupKeys]:
    """Read and verify the keys of all groups."""
    return [_keys(row) for row in KEY_ROWS.rows(tx, KEY_ROWS.everything())]


def in_state(tx: Transaction, name: str, state: GroupKeyState) -> GroupKeys | None:
    """Read the newest generation in a state."""
    return next((keys for keys in reversed(generations(tx, name)) if keys.state is state), None)


def put_member(tx: Transaction, member: Member) -> None:
    """Add a member, or change the state of one."""
    key: dict[str, Value] = {
        "group": member.group,
        "system_title": member.system_title,
        "security_setup": member.security_setup,
        "client": member.client,
    }
    row = MEMBER_ROWS.fetch(tx, **key)
    if row is None:
        MEMBER_ROWS.insert(tx, {**key, "state": member.state.value})
    elif row["state"] != member.state.value:
        MEMBER_ROWS.replace(tx, row, {"state": member.state.value})


def members(tx: Transaction, name: str) -> list[Member]:
    """List the members of a group, those removed too, by system title."""
    statement = MEMBER_ROWS.everything().where(group_members.c.group == name)
    return [_member(row) for row in MEMBER_ROWS.rows(tx, statement)]


def places(tx: Transaction, system_title: bytes) -> list[Member]:
    """List every group that a meter is or was in."""
    statement = MEMBER_ROWS.everything().where(group_members.c.system_title == system_title)
    return [_member(row) for row in MEMBER_ROWS.rows(tx, statement)]


def places_of(tx: Transaction, titles: Sequence[bytes]) -> dict[bytes, list[Member]]:
    """List the same for many meters, those that never were in one left out."""
    found: dict[bytes, list[Member]] = defaultdict(list)
    for row in rows_of(tx, MEMBER_ROWS.everything(), group_members, titles):
        MEMBER_ROWS.verify(tx, row)
        found[row["system_title"]].append(_member(row))
    return found


def own_group_of(tx: Transaction, system_title: bytes, security_setup: int, client: int) -> str:
    """Name the group of ours that a meter's key sets of a setup and client belong to; empty where it is in none."""
    return _names(places(tx, system_title), security_setup, client)[0]


def group_of(tx: Transaction, system_title: bytes, security_setup: int, client: int) -> str:
    """Do the same, and name another party's group, whose keys its key sets still carry, where it is in none of ours."""
    return group_among(places(tx, system_title), security_setup, client)


def group_among(found: Sequence[Member], security_setup: int, client: int) -> str:
    """Name the same group, of the places of a meter."""
    own, told = _names(found, security_setup, client)
    return own or told


def _names(found: Sequence[Member], security_setup: int, client: int) -> tuple[str, str]:
    names = [
        member.group
        for member in found
        if (member.security_setup, member.client, member.state) == (security_setup, client, MemberState.MEMBER)
    ]
    own = [name for name in names if "/" not in name]
    told = [name for name in names if "/" in name]
    return (own or [""])[0], (told or [""])[-1]


def _group(row: StoredRow) -> Group:
    return Group(row["name"], row["suite"], row["client"], row["origin"], Renewal(row["renewal"]))


def _keys(row: StoredRow) -> GroupKeys:
    keys = unpack(row["keys"], KEY_ROWS.name(row))
    return GroupKeys(row["group"], row["generation"], row["storage_key"], keys, GroupKeyState(row["state"]))


def _member(row: StoredRow) -> Member:
    return Member(row["group"], row["system_title"], row["security_setup"], row["client"], MemberState(row["state"]))
