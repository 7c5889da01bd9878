"""What somebody does to a store behind hsmkm's back, by the means of its database: SQLite's or PostgreSQL's own."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from tests.postgresql import binaries


def is_file(url: str) -> bool:
    """Whether a store is a SQLite file."""
    return url.startswith("sqlite:")


def path_of(url: str) -> Path:
    """Give the file of a SQLite store."""
    assert is_file(url)
    return Path(url.removeprefix("sqlite:"))


def query(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement, with `?` for values, and give the rows it returns."""
    if is_file(url):
        with closing(sqlite3.connect(path_of(url))) as connection, connection:
            return connection.execute(statement, values).fetchall()
    with psycopg.connect(url) as server:
        server.execute("SET session_replication_role = replica")  # no foreign key is in the way of a superuser
        found = server.execute(statement.replace("%", "%%").replace("?", "%s").encode(), values)
        return found.fetchall() if found.description else []


def alter(url: str, *statements: str) -> None:
    """Run statements that change something."""
    for statement in statements:
        query(url, statement)


def keep(url: str, path: Path) -> Callable[[], None]:
    """Keep a copy of the database in a file, and give what puts it back."""
    if is_file(url):
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path_of(url))) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)
        return lambda: _put_back_file(path_of(url), path)
    _tool("pg_dump", url, "--clean", "--if-exists", f"--schema={_schema(url)}", f"--file={path}")
    return lambda: _tool("psql", url, "--quiet", "--single-transaction", "-v", "ON_ERROR_STOP=1", f"--file={path}")


def remove(url: str) -> None:
    """Take the whole store away."""
    if is_file(url):
        for rest in path_of(url).parent.glob(path_of(url).name + "*"):
            rest.unlink()
    else:
        schema = _schema(url)
        alter(url, f'DROP SCHEMA "{schema}" CASCADE', f'CREATE SCHEMA "{schema}"')


def tables(url: str) -> list[str]:
    """Name the tables of a store."""
    if is_file(url):
        return [name for (name,) in query(url, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [name for (name,) in query(url, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")]


def octets_of(url: str) -> bytes:
    """Read every file of the database as it lies on the disk, with what was deleted."""
    if is_file(url):
        files = sorted(path_of(url).parent.glob(path_of(url).name + "*"))
    else:
        place = "SELECT current_setting('data_directory'), oid FROM pg_database WHERE datname = current_database()"
        ((folder, oid),) = query(url, place)
        alter(url, "CHECKPOINT")
        files = sorted(Path(folder, "base", str(oid)).iterdir())
    return b"".join(path.read_bytes() for path in files)


def _put_back_file(path: Path, copy: Path) -> None:
    """Write the copy into the file that is there: another file in its place would be known by that alone."""
    for log in path.parent.glob(path.name + "-*"):
        log.unlink()
    shutil.copy(copy, path)


def _schema(url: str) -> str:
    options = make_url(url).query.get("options", "")
    return str(options).partition("search_path=")[2] or "public"


def _tool(name: str, url: str, *arguments: str) -> None:
    place = binaries()
    assert place is not None
    done = subprocess.run([place / name, "--dbname", url, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
