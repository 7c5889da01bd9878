"""Key packages that were sent or received: what is known of each, its sequence, and its receipt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import func, select

from hsmkm.errors import RefusedError
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.schema import packages as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds


class Direction(StrEnum):
    """Which way a package went."""

    SENT = "sent"
    RECEIVED = "received"


@dataclass(frozen=True, slots=True)
class PackageRecord:
    """A package: `id` a UUID in text, `peer` the other party's name, `sha256` of its file, `receipt` in DER or none."""

    id: str
    direction: Direction
    purpose: str
    sequence: int
    peer: str
    created: datetime
    expires: datetime
    sha256: bytes
    state: str
    meters: int
    receipt: bytes | None = None


COLUMNS = (
    "id",
    "direction",
    "purpose",
    "sequence",
    "peer",
    "created",
    "expires",
    "sha256",
    "state",
    "meters",
    "receipt",
)
ROWS = AuthenticatedTable("hsmkm package/1", table, ("id",), COLUMNS)


def add(tx: Transaction, package: PackageRecord) -> None:
    """Record a package; raises RefusedError if its id, or its sequence with this peer and purpose, is taken."""
    if package.sequence <= _last(tx, package.direction, package.peer, package.purpose):
        raise RefusedError(f"sequence {package.sequence} of {package.purpose} with {package.peer} does not rise")
    values = {name: getattr(package, name) for name in COLUMNS}
    seconds = {"created": to_seconds(package.created), "expires": to_seconds(package.expires)}
    ROWS.insert(tx, values | seconds | {"direction": package.direction.value})


def next_sequence(tx: Transaction, peer: str, purpose: str) -> int:
    """Return the sequence for the next package to this peer, above lost ones too; adding the package takes it."""
    state = tx.state()
    return max(_last(tx, Direction.SENT, peer, purpose), state.sequence_floor if state else 0) + 1


def last_sequence(tx: Transaction, peer: str, purpose: str) -> int:
    """Return the highest sequence received from this peer, 0 if none."""
    return _last(tx, Direction.RECEIVED, peer, purpose)


def get(tx: Transaction, package_id: str) -> PackageRecord | None:
    """Find a package by its id; raises IntegrityError if its row was altered."""
    row = ROWS.fetch(tx, id=package_id)
    return None if row is None else _record(row)


def by_digest(tx: Transaction, sha256: bytes) -> PackageRecord | None:
    """Find a package by the SHA-256 of its file."""
    found = ROWS.rows(tx, select(table).where(table.c.sha256 == sha256).limit(1))
    return _record(found[0]) if found else None


def listing(
    tx: Transaction, *, direction: Direction | None = None, peer: str | None = None, state: str | None = None
) -> list[PackageRecord]:
    """List packages by date."""
    statement = select(table).order_by(table.c.created, table.c.id)
    wanted = {"direction": direction and direction.value, "peer": peer, "state": state}
    for name, value in wanted.items():
        if value is not None:
            statement = statement.where(table.c[name] == value)
    return [_record(row) for row in ROWS.rows(tx, statement)]


def set_state(tx: Transaction, package_id: str, state: str) -> None:
    """Say what became of a package; raises RefusedError if there is none."""
    ROWS.replace(tx, _require(tx, package_id), {"state": state})


def set_receipt(tx: Transaction, package_id: str, receipt: bytes, state: str) -> None:
    """Keep the receipt of a package with its state; the first receipt stays, another raises RefusedError."""
    row = _require(tx, package_id)
    if row["receipt"] not in (None, receipt):
        raise RefusedError(f"package {package_id} has another receipt already")
    ROWS.replace(tx, row, {"receipt": receipt, "state": state})


def _require(tx: Transaction, package_id: str) -> StoredRow:
    row = ROWS.fetch(tx, id=package_id)
    if row is None:
        raise RefusedError(f"there is no package {package_id}")
    return row


def _last(tx: Transaction, direction: Direction, peer: str, purpose: str) -> int:
    statement = select(func.max(table.c.sequence)).where(
        table.c.direction == direction.value, table.c.peer == peer, table.c.purpose == purpose
    )
    return tx.connection.scalar(statement) or 0


def _record(row: StoredRow) -> PackageRecord:
    moments = {"created": from_seconds(row["created"]), "expires": from_seconds(row["expires"])}
    values = {name: row[name] for name in COLUMNS} | moments | {"direction": Direction(row["direction"])}
    return PackageRecord(**values)
