"""Orders of a factory: each is one file, known by the SHA-256 of its octets, so that none is taken twice."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from hsmkm.errors import RefusedError
from hsmkm.store.authenticated import AuthenticatedTable, next_number
from hsmkm.store.canonical import Value
from hsmkm.store.schema import orders as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds

ROWS = AuthenticatedTable("hsmkm order/1", table, ("id",), ("number", "id", "name", "rows", "state", "created"))
OPEN = "open"
DONE = "done"


@dataclass(frozen=True, slots=True)
class Order:
    """An order file: `id` is its SHA-256 in lower-case hex, `rows` its number of meters; the store gives `created`."""

    id: str
    name: str
    rows: int
    state: str = OPEN
    created: datetime | None = None


def add(tx: Transaction, order: Order) -> None:
    """Record an order; raises RefusedError if its file was taken before."""
    if get(tx, order.id) is not None:
        raise RefusedError(f"order {order.name} was taken before", hint="continue it, or give a file of other meters")
    created = to_seconds(tx.now)
    values: dict[str, Value] = {
        "number": next_number(tx, table.c.number),
        "id": order.id,
        "name": order.name,
        "rows": order.rows,
        "state": order.state,
        "created": created,
    }
    ROWS.insert(tx, values)


def get(tx: Transaction, order_id: str) -> Order | None:
    """Find an order by its digest; raises IntegrityError if its row was altered."""
    row = ROWS.fetch(tx, id=order_id)
    return None if row is None else _order(row)


def listing(tx: Transaction) -> list[Order]:
    """List all orders, oldest first."""
    return [_order(row) for row in ROWS.rows(tx, select(table).order_by(table.c.number))]


def set_state(tx: Transaction, order_id: str, state: str) -> None:
    """Say where an order is; raises RefusedError if there is none."""
    row = ROWS.fetch(tx, id=order_id)
    if row is None:
        raise RefusedError(f"there is no order {order_id}")
    ROWS.replace(tx, row, {"state": state})


def number(tx: Transaction, order_id: str | None) -> int | None:
    """Return the number that rows of meters keep in place of the digest; raises RefusedError for an unknown order."""
    if order_id is None:
        return None
    row = tx.one(select(table.c.number).where(table.c.id == order_id))
    if row is None:
        raise RefusedError(f"there is no order {order_id}", hint="record the order before its meters")
    return int(row["number"])


def ids(tx: Transaction) -> dict[int, str]:
    """Map every number to its order's id."""
    return {row["number"]: row["id"] for row in tx.all(select(table.c.number, table.c.id))}


def _order(row: StoredRow) -> Order:
    return Order(row["id"], row["name"], row["rows"], row["state"], from_seconds(row["created"]))
