"""A copy of a SQLite store in one file, as it is at one moment: made while others go on, and told without a token."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from hsmkm.errors import InputError, RefusedError
from hsmkm.store import schema


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a copy tells of its store: its schema, the instance and number of its epoch, and its newest audit record."""

    schema: str
    instance: bytes
    epoch: int
    audit_sequence: int
    audit_hash: bytes


def copy_store(engine: Engine, path: Path) -> None:
    """Copy the database into a new SQLite file of mode 0600, whole and of one moment; nobody is kept from writing."""
    if engine.dialect.name != "sqlite":
        from hsmkm.store.transfer import to_file  # noqa: PLC0415 - it loads alembic, and only this needs it

        return to_file(engine, path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with engine.connect() as connection, closing(sqlite3.connect(path)) as target:
        source = connection.connection.driver_connection
        if not isinstance(source, sqlite3.Connection):
            raise RefusedError("the store's driver cannot copy a database", hint="write sqlite:PATH as store.url")
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")
    return None


def describe(path: Path) -> Snapshot:
    """Read what a copy is of; raises InputError for a file that is no store of a schema that is known here."""
    with _reading(path) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if revision not in schema.REVISIONS:
            raise InputError(f"the store's schema {revision} is newer than this program", hint="use the newer hsmkm")
        number, instance = connection.execute(
            "SELECT number, instance FROM epoch ORDER BY number DESC LIMIT 1"
        ).fetchone()
        last = connection.execute("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1").fetchone()
    return Snapshot(revision, instance, number, *(last or (0, b"")))


def digest(path: Path) -> bytes:
    """Take the SHA-256 of a copy, 32 octets."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def key_numbers(path: Path) -> set[int]:
    """Collect the numbers of the storage and integrity keys that anything in a copy is under."""
    found: set[int] = set()
    with _reading(path) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = {row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')}
            for name in sorted(columns & {"mac_key", "storage_key"}):
                query = f'SELECT DISTINCT "{name}" FROM "{table}" WHERE "{name}" > 0'  # noqa: S608 - names of its schema
                found |= {number for (number,) in connection.execute(query)}
    return found


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            yield connection
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise InputError(f"{path.name} is not a store of hsmkm", hint="take another backup") from error
