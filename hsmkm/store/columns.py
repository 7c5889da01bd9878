"""What the tables are made of: columns by their kind, and names that each database gives alike."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Integer, LargeBinary, MetaData, SmallInteger
from sqlalchemy.types import TypeEngine

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def column(name: str, kind: type[TypeEngine[Any]], *, null: bool = False) -> Column[Any]:
    """Make a column that is no key."""
    return Column(name, kind, nullable=null)


def key(name: str, kind: type[TypeEngine[Any]]) -> Column[Any]:
    """Make a column of the key, whose value is given."""
    return Column(name, kind, primary_key=True, autoincrement=False)


def number(name: str) -> Column[int]:
    """Count up from 1: a number that the database gives."""
    return Column(name, Integer, primary_key=True, autoincrement=True)


def authenticated(*, null: bool = False) -> tuple[Column[Any], ...]:
    """Make the columns of a row's MAC; they may be empty where earlier schemas had none."""
    return (
        Column("revision", Integer, nullable=null),
        Column("mac_key", Integer, nullable=null),
        Column("mac", LargeBinary, nullable=null),
    )


def key_set_columns() -> tuple[Column[Any], ...]:
    """Make the key of what belongs to one key set."""
    return (
        key("system_title", LargeBinary),
        key("security_setup", SmallInteger),
        key("client", SmallInteger),
        key("generation", Integer),
    )
