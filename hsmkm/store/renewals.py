"""Renewals of a meter's keys: where each stands, on these ways only:

    prepared     -> sent, abandoned
    sent         -> acknowledged, unknown
    acknowledged -> sent (the next stage), verified, unknown
    verified     -> sent (the next stage), active, unknown
    unknown      -> verified, abandoned
    active       -> (nothing)
    abandoned    -> (nothing)

`sent` is committed before the first octet leaves. Staying in a state with another stage is always allowed, as long as
the renewal is not finished: a renewal goes key by key.
"""  # noqa: D400 - the table belongs to the sentence

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import select

from hsmkm.errors import RefusedError
from hsmkm.store.authenticated import AuthenticatedTable, next_number
from hsmkm.store.canonical import Value, canonical_json
from hsmkm.store.key_set import ROLE_NAMES, KeySetRef
from hsmkm.store.pages import rows_of
from hsmkm.store.schema import renewals as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds
from hsmkm.token.types import MeterRole


class RenewalState(StrEnum):
    """Where a renewal stands."""

    PREPARED = "prepared"
    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    VERIFIED = "verified"
    ACTIVE = "active"
    UNKNOWN = "unknown"
    ABANDONED = "abandoned"


_S = RenewalState
EDGES: Mapping[RenewalState, frozenset[RenewalState]] = {
    _S.PREPARED: frozenset({_S.SENT, _S.ABANDONED}),
    _S.SENT: frozenset({_S.ACKNOWLEDGED, _S.UNKNOWN}),
    _S.ACKNOWLEDGED: frozenset({_S.SENT, _S.VERIFIED, _S.UNKNOWN}),
    _S.VERIFIED: frozenset({_S.SENT, _S.ACTIVE, _S.UNKNOWN}),
    _S.UNKNOWN: frozenset({_S.VERIFIED, _S.ABANDONED}),
    _S.ACTIVE: frozenset(),
    _S.ABANDONED: frozenset(),
}
FINISHED = (_S.ACTIVE, _S.ABANDONED)
COLUMNS = (
    "id",
    "system_title",
    "security_setup",
    "client",
    "from_generation",
    "to_generation",
    "roles",
    "stage",
    "state",
    "attempts",
    "tried",
    "campaign",
    "created",
    "updated",
)
ROWS = AuthenticatedTable("hsmkm renewal/1", table, ("id",), COLUMNS)


@dataclass(frozen=True, slots=True)
class Renewal:
    """The renewal of one meter's keys; `stage` says which keys it is at, `tried` what `resolve` has tried."""

    id: int
    system_title: bytes
    security_setup: int
    client: int
    from_generation: int
    to_generation: int
    roles: tuple[MeterRole, ...]
    stage: str
    state: RenewalState
    attempts: int
    tried: tuple[Mapping[str, object], ...]
    created: datetime
    updated: datetime

    @property
    def place(self) -> tuple[int, int]:
        """The Security Setup and the client whose keys are renewed."""
        return self.security_setup, self.client

    @property
    def old(self) -> KeySetRef:
        """The key set that is replaced."""
        return KeySetRef(self.system_title, self.security_setup, self.client, self.from_generation)

    @property
    def new(self) -> KeySetRef:
        """The key set that replaces it."""
        return KeySetRef(self.system_title, self.security_setup, self.client, self.to_generation)


def create(tx: Transaction, old: KeySetRef, to_generation: int, roles: tuple[MeterRole, ...], stage: str) -> int:
    """Prepare a renewal and return its id; raises RefusedError while another of the same keys is not finished."""
    place: dict[str, Value] = {
        "system_title": old.system_title,
        "security_setup": old.security_setup,
        "client": old.client,
    }
    for other in unfinished(tx, old.system_title):
        if (other.security_setup, other.client) == (old.security_setup, old.client):
            raise RefusedError(f"renewal {other.id} of {old} is {other.state}", hint="finish it with hsmkm resolve")
    now = to_seconds(tx.now)
    number = next_number(tx, table.c.id)
    values: dict[str, Value] = {
        "id": number,
        "from_generation": old.generation,
        "to_generation": to_generation,
        "roles": ",".join(role.value for role in roles),
        "stage": stage,
        "state": RenewalState.PREPARED.value,
        "attempts": 0,
        "tried": "[]",
        "campaign": None,
        "created": now,
        "updated": now,
    }
    ROWS.insert(tx, place | values)
    return number


def get(tx: Transaction, renewal_id: int) -> Renewal:
    """Find a renewal, or raise RefusedError; IntegrityError if its row was altered."""
    return _renewal(_row(tx, renewal_id))


def advance(tx: Transaction, renewal_id: int, state: RenewalState, stage: str) -> Renewal:
    """Move a renewal on and give it as it is then; raises RefusedError where the table has no such edge."""
    row = _row(tx, renewal_id)
    renewal = _renewal(row)
    stays = state is renewal.state and state not in FINISHED
    if not stays and state not in EDGES[renewal.state]:
        raise RefusedError(f"renewal {renewal_id} is {renewal.state} and cannot become {state}")
    changes: dict[str, Value] = {"state": state.value, "stage": stage, "updated": to_seconds(tx.now)}
    ROWS.replace(tx, row, changes)
    return _renewal({**row, **changes})


def lead_to(tx: Transaction, renewal_id: int, generation: int) -> None:
    """Say which generation an unfinished renewal leads to, where that is known only now; raises RefusedError."""
    renewal = get(tx, renewal_id)
    if renewal.state in FINISHED:
        raise RefusedError(f"renewal {renewal_id} is {renewal.state} and leads to generation {renewal.to_generation}")
    _change(tx, renewal_id, {"to_generation": generation})


def attempt(tx: Transaction, renewal_id: int, tried: Mapping[str, object]) -> int:
    """Count one more attempt and note what is tried, before it is; return how many there were with this one."""
    renewal = get(tx, renewal_id)
    notes = ",".join(canonical_json(note) for note in (*renewal.tried, tried))
    _change(tx, renewal_id, {"attempts": renewal.attempts + 1, "tried": f"[{notes}]"})
    return renewal.attempts + 1


def unfinished(tx: Transaction, system_title: bytes | None = None) -> list[Renewal]:
    """List renewals that are neither active nor abandoned, oldest first."""
    if system_title is not None:
        return [renewal for renewal in listing(tx, system_title) if renewal.state not in FINISHED]
    statement = select(table).where(table.c.state.not_in([state.value for state in FINISHED])).order_by(table.c.id)
    return [_renewal(row) for row in ROWS.rows(tx, statement)]


def under_way(tx: Transaction, titles: Sequence[bytes]) -> set[bytes]:
    """Tell which of many meters have a renewal that is neither active nor abandoned."""
    found = set()
    for row in rows_of(tx, select(table), table, titles):
        ROWS.verify(tx, row)
        if _renewal(row).state not in FINISHED:
            found.add(row["system_title"])
    return found


def listing(tx: Transaction, system_title: bytes) -> list[Renewal]:
    """List all renewals of a meter, oldest first."""
    statement = select(table).where(table.c.system_title == system_title).order_by(table.c.id)
    return [_renewal(row) for row in ROWS.rows(tx, statement)]


def _change(tx: Transaction, renewal_id: int, changes: Mapping[str, Value]) -> None:
    ROWS.replace(tx, _row(tx, renewal_id), dict(changes) | {"updated": to_seconds(tx.now)})


def _row(tx: Transaction, renewal_id: int) -> StoredRow:
    row = ROWS.fetch(tx, id=renewal_id)
    if row is None:
        raise RefusedError(f"there is no renewal {renewal_id}")
    return row


def _renewal(row: StoredRow) -> Renewal:
    values = {name: row[name] for name in Renewal.__dataclass_fields__}
    values |= {
        "roles": tuple(ROLE_NAMES[role] for role in row["roles"].split(",") if role),
        "state": RenewalState(row["state"]),
        "tried": tuple(json.loads(row["tried"])),
        "created": from_seconds(row["created"]),
        "updated": from_seconds(row["updated"]),
    }
    return Renewal(**values)
