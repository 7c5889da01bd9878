"""Reading what belongs to many meters: a few statements, each for a page of system titles, instead of some for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Select, Table

from hsmkm.store.store import StoredRow, Transaction

PAGE = 1000


def rows_of(tx: Transaction, statement: Select[Any], table: Table, titles: Sequence[bytes]) -> Iterator[StoredRow]:
    """Read the rows of a statement whose `system_title` in this table is among those given."""
    for start in range(0, len(titles), PAGE):
        yield from tx.all(statement.where(table.c.system_title.in_(titles[start : start + PAGE])))
