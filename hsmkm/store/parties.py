"""Registered parties: what each may do, for whom it may speak, and which certificates are pinned to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from hsmkm.errors import RefusedError
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.canonical import Value, canonical_json
from hsmkm.store.key_set import TITLE_OCTETS
from hsmkm.store.schema import parties as table
from hsmkm.store.store import StoredRow, Transaction

FINGERPRINT_OCTETS = 32
COLUMNS = ("name", "role", "system_title", "flags", "kind", "address", "certificates")
ROWS = AuthenticatedTable("hsmkm party/1", table, ("name",), COLUMNS)


@dataclass(frozen=True, slots=True)
class Party:
    """A party: `flags` are the FLAG ids it may speak for, `kind` is relay, client or empty.

    `certificates` maps a profile to the SHA-256 fingerprint (32 octets) of the certificate pinned for it.
    """

    name: str
    role: str
    system_title: bytes | None = None
    flags: tuple[str, ...] = ()
    kind: str = ""
    address: str | None = None
    certificates: Mapping[str, bytes] = field(default_factory=dict)


def add(tx: Transaction, party: Party) -> None:
    """Register a party; raises RefusedError if its name or system title is taken."""
    ROWS.insert(tx, _values(party))


def get(tx: Transaction, name: str) -> Party | None:
    """Find a party by its name; raises IntegrityError if its row was altered."""
    row = ROWS.fetch(tx, name=name)
    return None if row is None else _party(row)


def require(tx: Transaction, name: str) -> Party:
    """Find a party, or raise RefusedError."""
    party = get(tx, name)
    if party is None:
        raise RefusedError(f"there is no party {name}", hint="register it with hsmkm party add")
    return party


def by_certificate(tx: Transaction, profile: str, fingerprint: bytes) -> Party | None:
    """Find the party that a certificate of this profile is pinned to; every row is verified on the way."""
    for party in listing(tx):
        if party.certificates.get(profile) == fingerprint:
            return party
    return None


def listing(tx: Transaction, *, role: str | None = None) -> list[Party]:
    """List parties by name."""
    statement = ROWS.everything()
    if role is not None:
        statement = statement.where(table.c.role == role)
    return [_party(row) for row in ROWS.rows(tx, statement)]


def update(tx: Transaction, party: Party) -> None:
    """Change a party; raises RefusedError if there is none."""
    row = ROWS.fetch(tx, name=party.name)
    if row is None:
        raise RefusedError(f"there is no party {party.name}")
    ROWS.replace(tx, row, _values(party))


def _values(party: Party) -> dict[str, Value]:
    _check(party)
    return {
        "name": party.name,
        "role": party.role,
        "system_title": party.system_title,
        "flags": ",".join(party.flags),
        "kind": party.kind,
        "address": party.address,
        "certificates": canonical_json({name: value.hex() for name, value in party.certificates.items()}),
    }


def _check(party: Party) -> None:
    if not party.name or not party.role or any("," in flag or not flag for flag in party.flags):
        raise RefusedError(f"party {party.name!r} is not well formed")
    if party.system_title is not None and len(party.system_title) != TITLE_OCTETS:
        raise RefusedError(f"the system title of party {party.name} has {TITLE_OCTETS} octets")
    if any(len(value) != FINGERPRINT_OCTETS for value in party.certificates.values()):
        raise RefusedError(f"a fingerprint of party {party.name} is not of SHA-256")


def _party(row: StoredRow) -> Party:
    certificates = {name: bytes.fromhex(value) for name, value in json.loads(row["certificates"]).items()}
    flags = tuple(row["flags"].split(",")) if row["flags"] else ()
    return Party(row["name"], row["role"], row["system_title"], flags, row["kind"], row["address"], certificates)
