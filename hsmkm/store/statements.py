"""SQL statements by table and column, each made once: building one costs four times what running it does.

What stands for a value is a bound parameter named after its column, with `at_` before it where it is part of the key.
A key's column that is to be empty is another statement (IS NULL), since nothing equals NULL.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Delete,
    Insert,
    Select,
    Table,
    Update,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from hsmkm.store.canonical import Value

Shape: TypeAlias = tuple[tuple[str, bool], ...]
"""The columns of a key, and for each whether it is to be empty."""


def shape(key: Mapping[str, Value]) -> Shape:
    """Say which statement finds the rows of a key."""
    return tuple((name, value is None) for name, value in key.items())


def bound(key: Mapping[str, Value]) -> dict[str, Value]:
    """Name the values of a key as its statement does."""
    return {f"at_{name}": value for name, value in key.items() if value is not None}


@cache
def rows_at(table: Table, key: Shape) -> Select[Any]:
    """Select the rows that a key matches."""
    return select(table).where(*_at(table, key))


@cache
def column_at(table: Table, column: str, key: Shape) -> Select[Any]:
    """Select one column of the rows that a key matches."""
    return select(table.c[column]).where(*_at(table, key))


@cache
def highest_at(table: Table, column: str, key: Shape) -> Select[Any]:
    """Select the highest value of a column in the rows that a key matches; of all rows where the key is empty."""
    return select(func.max(table.c[column])).where(*_at(table, key))


@cache
def insertion(table: Table) -> Insert:
    """Insert a row."""
    return insert(table)


@cache
def change_at(table: Table, key: Shape) -> Update:
    """Change the rows that a key matches."""
    return update(table).where(*_at(table, key))


@cache
def deletion_at(table: Table, key: Shape) -> Delete:
    """Delete the rows that a key matches."""
    return delete(table).where(*_at(table, key))


def _at(table: Table, key: Shape) -> list[ColumnElement[bool]]:
    columns = [(table.c[name], empty) for name, empty in key]
    return [
        column.is_(None) if empty else column == bindparam(f"at_{column.name}", type_=column.type)
        for column, empty in columns
    ]
