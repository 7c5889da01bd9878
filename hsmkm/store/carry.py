"""Carries every row of one store into another, new one, whose token makes the MACs from then on.

Nothing is chosen table by table, so that a table of a later version is not forgotten: what is not named here as staying
behind goes over. Invocation counters and receive counters, transaction numbers, package sequences, states, holders and
groups go over as they are; key sets and all other sealed keys under the wrappings that the caller gives.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Table, create_engine, func, select

from hsmkm.errors import RefusedError
from hsmkm.store import check, groups, key_set_rows, key_sets, meters, models, schema
from hsmkm.store import engine as engines
from hsmkm.store.key_set import StoredKey, pack, unpack
from hsmkm.store.store import Authenticator, StoredRow, Transaction
from hsmkm.token.types import Sealed

Rewrap = Callable[[StoredKey, int], Sealed]
"""Gives the wrapping of a key of a suite under the new token's storage key."""

STAYS = frozenset({"epoch", "audit", "leases", "approvals", "retirement", "store_state"})
"""What is of one home: its chain of records, who holds a meter at this moment, approvals given, and its retirement."""

OWN = frozenset({"parties", "certificates", "certified_keys", "issuances", "revocation_lists", "officers"})
"""What a new home may have by itself: its own rows stay, and the others are added."""

BOUNDS = ("counter_reach", "counter_highest", "counter_offset", "sequence_floor", "generation_floor")
"""What the state row says of all rows together, for numbers that are given later."""

MADE = frozenset({"revision", "mac_key", "mac"})
"""Columns that each store makes itself."""

_SEALED = frozenset({"models", "group_keys", "key_sets"})
_ROWS = {rows.table.name: rows for rows in (*check.AUTHENTICATED, meters.ROWS)}


@contextmanager
def reading(path: Path, authenticator: Authenticator | None) -> Iterator[Transaction]:
    """Read a copy of a store, of which no octet is changed; without an authenticator nothing is verified."""
    place = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    opened = create_engine("sqlite+pysqlite://", creator=lambda: sqlite3.connect(place, uri=True), hide_parameters=True)
    try:
        with opened.connect() as connection, connection.begin():
            yield Transaction(connection, authenticator, datetime.now(UTC))
    finally:
        opened.dispose()


def tables() -> list[Table]:
    """List the tables that go over, in an order in which every row finds what it refers to."""
    return [table for table in schema.metadata.sorted_tables if table.name not in STAYS]


def check_new(tx: Transaction) -> None:
    """Raise RefusedError unless the store has nothing yet but what a new home makes for itself."""
    used = [
        f"there are {count} row(s) in {table.name}"
        for table in tables()
        if table.name not in OWN and (count := tx.connection.scalar(select(func.count()).select_from(table)))
    ]
    if used:
        raise RefusedError("this home is in use", used, hint="move into a new one: hsmkm init, and its certificates")


def sealed_keys(tx: Transaction) -> Iterator[tuple[StoredKey, int, int]]:
    """Give every sealed key of a store with its suite and storage key; one that is in several places comes as often."""
    for keys in models.every_keys(tx):
        yield from ((key, keys.suite, keys.storage_key) for key in keys.keys)
    for group in groups.every_generation(tx):
        suite = groups.require(tx, group.group).suite
        yield from ((key, suite, group.storage_key) for key in group.keys)
    for row in tx.stream(key_set_rows.with_meter()):
        found = key_set_rows.verified(tx, row)
        yield from ((key, found.suite, found.storage_key) for key in found.keys)


def carry(source: Transaction, target: Transaction, rewrap: Rewrap) -> dict[str, int]:
    """Put every row of `source` into `target`; how many there were of each table.

    The caller has seen that `source` is as its own token authenticated it: no MAC of it can be verified here.
    """
    _carry_bounds(source, target)
    count: dict[str, int] = {}
    for table in tables():
        for row in source.stream(select(table)):
            count[table.name] = count.get(table.name, 0) + _carry_row(source, target, table, row, rewrap)
    engines.count_on(target.connection, tables())
    return count


def _carry_bounds(source: Transaction, target: Transaction) -> None:
    """Keep above what a recovery of the old store kept above, and know how far its counters went."""
    row = source.one(select(schema.store_state))
    if row is None or target.before is None:
        raise RefusedError("a store without a state is not carried", hint="hsmkm store upgrade, in the old home")
    higher = {name: max(row[name], getattr(target.before, name)) for name in BOUNDS}
    target.before = replace(target.before, **higher)


def _carry_row(source: Transaction, target: Transaction, table: Table, row: StoredRow, rewrap: Rewrap) -> int:
    if table.name in OWN and _is_there(target, table, row):
        return 0
    if table.name in _SEALED:
        _carry_sealed(source, target, table, row, rewrap)
    elif table.name in _ROWS and row["mac"] is not None:
        rows = _ROWS[table.name]
        rows.insert(target, {name: value for name, value in row.items() if name not in MADE})
    else:
        target.insert(table, row)
    return 1


def _carry_sealed(source: Transaction, target: Transaction, table: Table, row: StoredRow, rewrap: Rewrap) -> None:
    if table.name == "models":
        keys = models.get_keys(source, row["name"])
        values = {name: row[name] for name in models.ROWS.columns}
        if keys is not None:
            number, fresh = _rewrapped(keys.keys, keys.suite, rewrap)
            values |= {"storage_key": number, "keys": pack(fresh)}
        models.ROWS.insert(target, values)
    elif table.name == "group_keys":
        suite = groups.require(source, row["group"]).suite
        number, fresh = _rewrapped(unpack(row["keys"], groups.KEY_ROWS.name(row)), suite, rewrap)
        values = {name: row[name] for name in groups.KEY_ROWS.columns}
        groups.KEY_ROWS.insert(target, values | {"storage_key": number, "keys": pack(fresh)})
    else:
        _carry_key_set(source, target, row, rewrap)


def _carry_key_set(source: Transaction, target: Transaction, row: StoredRow, rewrap: Rewrap) -> None:
    statement = key_set_rows.with_meter()
    for name in key_set_rows.KEY:
        statement = statement.where(schema.key_sets.c[name] == row[name])
    (whole,) = source.all(statement)
    found = key_set_rows.verified(source, whole)
    number, fresh = _rewrapped(found.keys, found.suite, rewrap)
    meter = meters.meter_of(_row_of_meter(source, found.ref.system_title), whole["model_name"], whole["order_id"])
    made = replace(found, storage_key=number, keys=fresh, mac=None)
    key_sets.add(target, key_sets.authenticate(_authenticator(target), made, meter))


def _row_of_meter(tx: Transaction, system_title: bytes) -> StoredRow:
    row = tx.one(select(schema.meters).where(schema.meters.c.system_title == system_title))
    if row is None:
        raise RefusedError(f"there is no meter {system_title.hex().upper()}")
    return row


def _rewrapped(keys: tuple[StoredKey, ...], suite: int, rewrap: Rewrap) -> tuple[int, tuple[StoredKey, ...]]:
    sealed = [rewrap(key, suite) for key in keys]
    fresh = tuple(replace(key, wrapped=one.wrapped) for key, one in zip(keys, sealed, strict=True))
    return sealed[0].storage_key, fresh


def _authenticator(tx: Transaction) -> Authenticator:
    if tx.authenticator is None:
        raise RefusedError("rows are only carried into a store that is open with its token")
    return tx.authenticator


def _is_there(tx: Transaction, table: Table, row: StoredRow) -> bool:
    statement = select(table)
    for column in table.primary_key.columns:
        statement = statement.where(column == row[column.name])
    return tx.one(statement) is not None
