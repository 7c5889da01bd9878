"""Reading many rows: a few statements, each for a page of system titles, and listings that are never held whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, Table

from hsmkm.store.store import Store, StoredRow, Transaction

PAGE = 1000

T = TypeVar("T")
K = TypeVar("K")


def rows_of(tx: Transaction, statement: Select[Any], table: Table, titles: Sequence[bytes]) -> Iterator[StoredRow]:
    """Read the rows of a statement whose `system_title` in this table is among those given."""
    for start in range(0, len(titles), PAGE):
        yield from tx.all(statement.where(table.c.system_title.in_(titles[start : start + PAGE])))


def every(store: Store, page: Callable[[Transaction, K], Sequence[T]], after: K, key: Callable[[T], K]) -> Iterator[T]:
    """Read a listing of any length, which is ordered by `key`, in pages: `page` gives what comes next behind a key.

    Each page is a transaction of its own: whoever reads slowly keeps SQLite from no checkpoint and PostgreSQL from no
    vacuum. A row that nobody changes meanwhile is read once.
    """
    while True:
        with store.read() as tx:
            found = page(tx, after)
        if not found:
            return
        yield from found
        after = key(found[-1])
