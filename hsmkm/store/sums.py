"""How many rows a table holds and the sum of their MACs: a row deleted, put back or of an earlier time shows.

The sum is taken modulo 2^256 over the MACs as numbers, so an insertion adds, a change subtracts and adds, a deletion
subtracts, and no other row is read. A row without a MAC of its own (a meter that never changed: its key sets cover it)
counts and adds nothing. Every table with a column `mac` has a sum, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeAlias

from sqlalchemy import Connection, Table, func, select

from hsmkm.errors import IntegrityError
from hsmkm.store.canonical import canonical_json
from hsmkm.store.schema import metadata, store_state

MODULUS = 1 << 256
TABLES: Mapping[str, Table] = {
    table.name: table for table in metadata.sorted_tables if "mac" in table.c and table is not store_state
}
"""The tables that have a sum."""

Sum: TypeAlias = tuple[int, int]
"""Number of rows, and the sum of their MACs."""

EMPTY: Sum = (0, 0)


class Changes:
    """What one transaction adds to the sums and takes from them."""

    def __init__(self) -> None:
        self.tables: dict[str, Sum] = {}

    def add(self, table: str, mac: object) -> None:
        """Note a row that is there now; `mac` is its MAC, or nothing."""
        self._note(table, 1, _number(mac))

    def remove(self, table: str, mac: object) -> None:
        """Note a row that was there."""
        self._note(table, -1, -_number(mac))

    def on(self, before: Mapping[str, Sum]) -> dict[str, Sum]:
        """Give the sums after these changes."""
        after = dict(before)
        for table, (count, total) in self.tables.items():
            known = after.get(table, EMPTY)
            after[table] = (known[0] + count, (known[1] + total) % MODULUS)
        return {table: found for table, found in after.items() if found != EMPTY}

    def _note(self, table: str, count: int, number: int) -> None:
        known = self.tables.get(table, EMPTY)
        self.tables[table] = (known[0] + count, known[1] + number)


def rows_in(connection: Connection) -> int:
    """Count the rows of all tables that have a sum."""
    return sum(connection.scalar(select(func.count()).select_from(table)) or 0 for table in TABLES.values())


def taken(connection: Connection) -> dict[str, Sum]:
    """Take the sums of all tables by reading every MAC."""
    found: dict[str, Sum] = {}
    for name, table in TABLES.items():
        count = total = 0
        for (mac,) in connection.execute(select(table.c.mac), execution_options={"yield_per": 1000}):
            count += 1
            total += _number(mac)
        if count:
            found[name] = (count, total % MODULUS)
    return found


def differences(
    connection: Connection, said: Mapping[str, Sum], without: AbstractSet[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Read every MAC, and name each table that does not hold what it should, with what is wrong."""
    found = taken(connection)
    for table in (name for name in TABLES if name not in without):
        (count, total), (should, sum_) = found.get(table, EMPTY), said.get(table, EMPTY)
        if count != should:
            yield table, f"it has {count} row(s), and {should} were written"
        elif total != sum_:
            yield table, "it has rows of an earlier time, or of another store"


def to_text(sums: Mapping[str, Sum]) -> str:
    """Write sums as they are stored: canonical JSON."""
    return canonical_json({table: [count, f"{total:064x}"] for table, (count, total) in sums.items()})


def from_text(text: str) -> dict[str, Sum]:
    """Read what `to_text` wrote; raises IntegrityError for anything else."""
    try:
        return {table: (int(count), int(total, 16)) for table, (count, total) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise IntegrityError("the sums of the store cannot be read", hint="restore it from a backup") from error


def _number(mac: object) -> int:
    return int.from_bytes(mac, "big") if isinstance(mac, bytes) else 0
