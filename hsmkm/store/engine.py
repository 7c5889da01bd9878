"""Everything that one database does differently from another: how it is opened, locked, read and filled in bulk."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry

from hsmkm.errors import InputError, RefusedError
from hsmkm.store import postgresql
from hsmkm.store.failures import StoreUnavailableError

Row: TypeAlias = Sequence[bytes | str | int | None]

READ_ONLY = postgresql.READ_ONLY
BUSY_SECONDS = 30
_FILE_PREFIX = "sqlite:"
_URLS = "write sqlite:PATH or postgresql://HOST/DATABASE"
_SQLITE_PRAGMAS = (
    "PRAGMA page_size=8192",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA wal_autocheckpoint=20000",
    "PRAGMA secure_delete=ON",
    "PRAGMA cell_size_check=ON",
    "PRAGMA trusted_schema=OFF",
)


def open_engine(url: str, *, create: bool = False) -> Engine:
    """Open a database: `sqlite:PATH`, or `postgresql://HOST/DATABASE` and what else libpq knows of addresses.

    A SQLite file is only made if `create` says so, with mode 0600. Raises InputError for a bad URL and RefusedError
    for a file that is not there.
    """
    if url.startswith(_FILE_PREFIX) and not url.startswith(_FILE_PREFIX + "//"):
        return _open_file(Path(url.removeprefix(_FILE_PREFIX)), create=create)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise InputError("the store's url cannot be used", hint=_URLS) from error
    if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
        raise InputError("the store's url cannot be used", hint=_URLS)
    return postgresql.open_server(parsed, BUSY_SECONDS)


def exists(url: str) -> bool:
    """Tell whether a SQLite file is there; of a server's database only its tables tell, so that one counts as there."""
    return not url.startswith(_FILE_PREFIX) or Path(url.removeprefix(_FILE_PREFIX)).exists()


def settle(connection: Connection, tables: Sequence[str]) -> None:
    """Let text compare by octets on every database."""
    if connection.dialect.name != "sqlite":
        postgresql.settle(connection, tables)


def count_on(connection: Connection, tables: Iterable[Table]) -> None:
    """Let the numbers that the database gives go on above those that rows brought along."""
    if connection.dialect.name != "sqlite":
        postgresql.count_on(connection, tables)


def close_log(engine: Engine) -> None:
    """Leave a SQLite store in one file that needs no log beside it."""
    with closing(engine.raw_connection()) as connection:
        connection.cursor().execute("PRAGMA journal_mode=DELETE")


def alone_at_anchor(engine: Engine) -> AbstractContextManager[None]:
    """Keep other hosts of one store from its anchor; a SQLite store is of one host, whose file lock is enough."""
    return nullcontext() if engine.dialect.name == "sqlite" else postgresql.alone_at_anchor(engine)


def insert_rows(connection: Connection, table: Table, columns: Sequence[str], rows: Iterable[Row]) -> int:
    """Insert many rows given as tuples in the order of `columns`; a tuple costs half of a dictionary."""
    given = list(map(tuple, rows))
    if not given:
        return 0
    if connection.dialect.name == "sqlite":
        names = ", ".join(f'"{column}"' for column in columns)
        marks = ", ".join("?" * len(columns))
        statement = f'INSERT INTO "{table.name}" ({names}) VALUES ({marks})'  # noqa: S608 - names of our own schema
        connection.exec_driver_sql(statement, given)
    else:
        postgresql.copy_rows(connection, table.name, columns, given)
    return len(given)


def sweep(engine: Engine) -> bool:
    """Leave nothing that was deleted in the database's file or its log; False where another process is in the way.

    SQLite overwrites what is deleted with zeros (secure_delete), but its log still has the pages of before, and a page
    that was split may have a copy. So the file is written anew, and the log emptied.
    """
    if engine.dialect.name != "sqlite":
        return postgresql.sweep(engine)
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only=0")
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ((blocked, *_),) = cursor.fetchall()
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return not blocked


def _open_file(path: Path, *, create: bool) -> Engine:
    if create and not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    if not path.is_file():
        hint = "restore it from a backup; that of a new home is made by: hsmkm token init"
        raise RefusedError(f"there is no store at {path}", hint=hint)
    url = make_url("sqlite+pysqlite://").set(database=str(path))
    arguments = {"timeout": BUSY_SECONDS, "isolation_level": None, "check_same_thread": False}
    engine = create_engine(url, connect_args=arguments, hide_parameters=True, **postgresql.KEPT)
    opened = _SameFile(path)
    event.listen(engine, "do_connect", lambda *_: opened.check())
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "begin", lambda _: opened.check())
    return engine


class _SameFile:
    """A SQLite file as it was opened.

    SQLite goes on in a file that was deleted, moved away or replaced, and says nothing: what it commits there is lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = self._present()

    def check(self) -> None:
        """Raise StoreUnavailableError unless the file is still the one at its path."""
        if self._present() != self._identity:
            raise StoreUnavailableError(
                f"the store at {self._path} is gone: no file is there any more, or another one",
                hint="put the file back, or restore a backup; then hsmkm store recover, if it is an older one",
            )

    def _present(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _prepare_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None
    for pragma in _SQLITE_PRAGMAS:
        connection.execute(pragma)


def _begin_sqlite(connection: Connection) -> None:
    """Begin ourselves: sqlite3 would begin at the first write, after a read that may be stale by then."""
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql(f"PRAGMA query_only={int(read_only)}")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
