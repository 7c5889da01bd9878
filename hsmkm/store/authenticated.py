"""Tables whose rows each carry a MAC of their own: made with every change, verified with every read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Column, Select, Table, select

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store.canonical import Value, encode
from hsmkm.store.cells import mac_of, text_of
from hsmkm.store.pages import PAGE
from hsmkm.store.store import StoredRow, Transaction


@dataclass(frozen=True)
class AuthenticatedTable:
    """A table, the label of its encoding, and the columns that its MAC covers besides `revision`.

    `columns` is written out, not derived: a column that a later migration adds must not unsettle the MACs made before.
    """

    label: str
    table: Table
    key: tuple[str, ...]
    columns: tuple[str, ...]

    def insert(self, tx: Transaction, values: Mapping[str, Value]) -> None:
        """Insert a row at revision 1; raises RefusedError if its key is taken."""
        if tx.at(self.table, self._key(values)) is not None:
            raise RefusedError(f"{self.name(values)} is there already")
        tx.insert(self.table, self._sealed(tx, values, 1))

    def replace(self, tx: Transaction, row: Mapping[str, Any], changes: Mapping[str, Value]) -> None:
        """Change a row that was fetched in this transaction; its revision rises by one."""
        revision = row["revision"] or 0
        values = {name: row[name] for name in self.columns} | dict(changes)
        sealed = self._sealed(tx, values, revision + 1)
        if tx.replace(self.table, dict(row), (*self.key, "revision"), sealed) != 1:
            raise RefusedError(f"{self.name(row)} was changed by another at the same time")

    def replace_many(self, tx: Transaction, rows: Iterable[tuple[StoredRow, Mapping[str, Value]]]) -> None:
        """Change rows that were fetched in this transaction, each as `replace` does, by one statement for all."""
        changed = []
        for row, changes in rows:
            sealed = self._sealed(
                tx, {name: row[name] for name in self.columns} | dict(changes), (row["revision"] or 0) + 1
            )
            cells = (*self.key, *changes, "revision", "mac_key", "mac")
            changed.append((row["mac"], {name: sealed[name] for name in cells}))
        if changed:
            tx.update_macs(self.table, self.key, changed)

    def insert_many(self, tx: Transaction, rows: Iterable[Mapping[str, Value]]) -> list[StoredRow]:
        """Insert many rows at revision 1, and give them; raises RefusedError if the key of any is taken.

        Their MACs, which cover all that is in them, are what the audit record is told.
        """
        given = list(rows)
        self._refuse_taken(tx, given)
        sealed = [self._sealed(tx, values, 1) for values in given]
        cells = (*self.columns, "revision", "mac_key", "mac")
        tx.effect(encode(f"insert {self.table.name}", *(row["mac"] for row in sealed)))
        tx.insert_rows(self.table, cells, [tuple(row[name] for name in cells) for row in sealed])
        return sealed

    def unchanged(self, tx: Transaction, rows: Sequence[StoredRow]) -> bool:
        """Tell whether rows that were read or made before are still as they were; their keys differ in the last part.

        What somebody changed beside their MAC shows when they are read next.
        """
        *first, last = self.key
        beginning = {name: rows[0][name] for name in first} if rows else {}
        pages = self._pages(last, [row[last] for row in rows], beginning, last, "mac")
        found = {each[last]: each["mac"] for page in pages for each in tx.all(page)}
        return all(found.get(row[last]) == row["mac"] for row in rows)

    def fetch_many(self, tx: Transaction, column: str, values: Sequence[Value], **key: Value) -> list[StoredRow]:
        """Read the rows with one of these values in a column and with the rest of the key, and verify each."""
        return [row for page in self._pages(column, values, key) for row in self.rows(tx, page)]

    def fetch(self, tx: Transaction, **key: Value) -> StoredRow | None:
        """Read one row and verify it; raises IntegrityError if its MAC does not fit."""
        row = tx.at(self.table, self._key(key))
        if row is not None:
            self.verify(tx, row)
        return row

    def rows(self, tx: Transaction, statement: Select[Any]) -> list[StoredRow]:
        """Read the rows of a statement over the whole table and verify each."""
        found = tx.all(statement)
        for row in found:
            self.verify(tx, row)
        return found

    def everything(self) -> Select[Any]:
        """Select all rows in the order of their key."""
        return select(self.table).order_by(*(self.table.c[name] for name in self.key))

    def verify(self, tx: Transaction, row: Mapping[str, Any]) -> None:
        """Raise IntegrityError unless the row has a MAC and fits it; a listing without a token checks nothing."""
        if tx.authenticator is None:
            return
        name, values = self.name(row), (row[name] for name in self.columns)
        tx.verify(name, mac_of(row, name), self.label, row["revision"], *values)

    def faults(self, tx: Transaction) -> Iterator[str]:
        """Name the rows that do not fit their MAC."""
        for row in tx.stream(self.everything()):
            try:
                self.verify(tx, row)
            except IntegrityError:
                yield self.name(row)

    def name(self, row: Mapping[str, Any]) -> str:
        """Name a row for people: its table and key."""
        return self.table.name + " " + " ".join(text_of(row[name]) for name in self.key)

    def _refuse_taken(self, tx: Transaction, rows: Sequence[Mapping[str, Value]]) -> None:
        """Raise RefusedError for a row whose key is taken; neighbours that differ in its last part are one question."""
        *first, last = self.key
        for beginning, alike in groupby(rows, key=lambda row: {name: row[name] for name in first}):
            by_last = {row[last]: row for row in alike}
            for page in self._pages(last, list(by_last), beginning):
                for taken in tx.all(page.limit(1)):
                    raise RefusedError(f"{self.name(taken)} is there already")

    def _pages(
        self, column: str, values: Sequence[Value], key: Mapping[str, Value], *cells: str
    ) -> Iterator[Select[Any]]:
        """Select the rows, or these cells of them, with one of many values in a column, in several statements."""
        wanted = [self.table.c[name] for name in cells or self.table.c.keys()]
        statement = select(*wanted).where(*(self.table.c[name] == value for name, value in key.items()))
        for start in range(0, len(values), PAGE):
            yield statement.where(self.table.c[column].in_(values[start : start + PAGE]))

    def _key(self, values: Mapping[str, Value]) -> dict[str, Value]:
        return {name: values[name] for name in self.key}

    def _sealed(self, tx: Transaction, values: Mapping[str, Value], revision: int) -> dict[str, Value]:
        mac = tx.mac(self.label, revision, *(values[name] for name in self.columns))
        return dict(values) | {"revision": revision, "mac_key": mac.key_number, "mac": mac.value}


def next_number(tx: Transaction, column: Column[Any]) -> int:
    """Give the number of the next row where they count up from 1: its MAC covers it, so it is known before."""
    return tx.highest(column.table, column.name, {}) + 1
