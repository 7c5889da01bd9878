"""Carries a store as it is between a server and a SQLite file, which is what a backup holds: every row, no MAC anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, select

from hsmkm.errors import RefusedError
from hsmkm.store import engine as engines
from hsmkm.store import migrate, revision, schema
from hsmkm.store.failures import database_errors

ROWS = 1000
_INSTANCE = select(schema.epoch.c.instance).order_by(schema.epoch.c.number).limit(1)


def to_file(source: Engine, path: Path) -> None:
    """Copy a server's store into a new file of mode 0600, as it is at one moment; nobody is kept from writing."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    target = engines.open_engine(f"sqlite:{path}")
    try:
        with source.connect() as plain:
            connection = plain.execution_options(**{engines.READ_ONLY: True})
            with connection.begin():
                _copy(connection, target)
        engines.close_log(target)
    finally:
        target.dispose()


def from_file(path: Path, url: str, last: str = "") -> None:
    """Put the store of a file, which is of this program's schema, into an empty database: whole, or not at all.

    The same store is taken out of its way if its newest audit record has the action `last`: what an earlier try left,
    and nobody changed since. Raises RefusedError for a database that holds anything else.
    """
    source, target = engines.open_engine(f"sqlite:{path}"), engines.open_engine(url)
    try:
        with database_errors(), source.connect() as plain:
            connection = plain.execution_options(**{engines.READ_ONLY: True})
            with connection.begin():
                _copy(connection, target, replaces=_is_left(connection, target, last))
    finally:
        source.dispose()
        target.dispose()


def _is_left(source: Connection, target: Engine, last: str) -> bool:
    """Tell whether an earlier try left this store there; RefusedError for anything else that is there."""
    if revision.known(target) is None:
        revision.refuse_strangers(target)
        return False
    with target.connect() as connection:
        newest = connection.scalar(select(schema.audit.c.action).order_by(schema.audit.c.sequence.desc()).limit(1))
        same = connection.scalar(_INSTANCE) == source.scalar(_INSTANCE)
    if newest != last or not same:
        hint = "make an empty one and name it in HSMKM_STORE_URL or store.url; or drop this one, and make it anew"
        raise RefusedError("the database holds a store already", hint=hint)
    return True


def _copy(source: Connection, target: Engine, *, replaces: bool = False) -> None:
    tables = schema.metadata.sorted_tables
    with target.begin() as connection:
        if replaces:
            schema.metadata.drop_all(connection)
            connection.exec_driver_sql("DROP TABLE alembic_version")
        migrate.make_tables(connection)
        for table in tables:
            for rows in _pages(source, table.name):
                engines.insert_rows(connection, table, table.columns.keys(), rows)
        engines.count_on(connection, tables)


def _pages(source: Connection, name: str) -> Iterator[list[tuple[bytes | str | int | None, ...]]]:
    statement = select(schema.metadata.tables[name])
    with source.execute(statement, execution_options={"yield_per": ROWS}) as result:
        for page in result.partitions(ROWS):
            yield [tuple(row) for row in page]
