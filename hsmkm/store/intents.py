"""Effects in a meter: an intent is durable before the first octet is sent, and its outcome after the answer.

An intent without an outcome tells, after a crash, that a meter may be in either state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from hsmkm.errors import RefusedError
from hsmkm.store.authenticated import AuthenticatedTable, next_number
from hsmkm.store.canonical import Value, canonical_json
from hsmkm.store.schema import intents as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds

COLUMNS = ("id", "system_title", "action", "detail", "opened", "outcome", "closed")
ROWS = AuthenticatedTable("hsmkm intent/1", table, ("id",), COLUMNS)


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be done to a meter, or by an authority of its own title, and what came of it."""

    id: int
    system_title: bytes
    action: str
    detail: Mapping[str, object]
    opened: datetime
    outcome: str | None
    closed: datetime | None


def open(tx: Transaction, system_title: bytes, action: str, detail: Mapping[str, object]) -> int:  # noqa: A001 - intents.open
    """Say what is about to be done to a meter, and return the intent's id."""
    number = next_number(tx, table.c.id)
    values: dict[str, Value] = {
        "id": number,
        "system_title": system_title,
        "action": action,
        "detail": canonical_json(detail),
        "opened": to_seconds(tx.now),
        "outcome": None,
        "closed": None,
    }
    ROWS.insert(tx, values)
    return number


def outcome(tx: Transaction, intent_id: int, outcome: str) -> None:
    """Say what came of it, once; raises RefusedError if there is no such intent or its outcome is known."""
    row = ROWS.fetch(tx, id=intent_id)
    if row is None or row["outcome"] is not None:
        raise RefusedError(f"intent {intent_id} is not open")
    ROWS.replace(tx, row, {"outcome": outcome, "closed": to_seconds(tx.now)})


def get(tx: Transaction, intent_id: int) -> Intent | None:
    """Find an intent; raises IntegrityError if its row was altered."""
    row = ROWS.fetch(tx, id=intent_id)
    return None if row is None else _intent(row)


def unfinished(tx: Transaction, system_title: bytes | None = None) -> list[Intent]:
    """List intents without an outcome, oldest first."""
    statement = select(table).where(table.c.outcome.is_(None)).order_by(table.c.id)
    if system_title is not None:
        statement = statement.where(table.c.system_title == system_title)
    return [_intent(row) for row in ROWS.rows(tx, statement)]


def listing(tx: Transaction, system_title: bytes, action: str, *, since: datetime | None = None) -> list[Intent]:
    """List what was ever about to be done to a meter of one kind, or since a moment, oldest first."""
    statement = select(table).where(table.c.system_title == system_title, table.c.action == action)
    if since is not None:
        statement = statement.where(table.c.opened >= to_seconds(since))
    return [_intent(row) for row in ROWS.rows(tx, statement.order_by(table.c.id))]


def _intent(row: StoredRow) -> Intent:
    moments = from_seconds(row["opened"]), from_seconds(row["closed"])
    detail = json.loads(row["detail"])
    return Intent(row["id"], row["system_title"], row["action"], detail, moments[0], row["outcome"], moments[1])
