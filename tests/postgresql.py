"""A PostgreSQL of this test process's own: on a Unix socket in a folder of its own, and gone when the process is.

A server refuses to run as root, so root runs it as `postgres` or `nobody`. Every commit is synced, as in earnest.
"""

from __future__ import annotations

import atexit
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

SETTINGS = ("listen_addresses=", "shared_buffers=16MB", "max_connections=80", "max_wal_size=256MB", "autovacuum=off")
READY_SECONDS = 60
ROOM = 4 << 30


CHOICE = "HSMKM_TEST_STORE"
PLACE = "HSMKM_TEST_CLUSTER"
"""A folder for the server of whoever wants its databases to stay: made there once, and started again each time."""

TO_STAY = ("shared_buffers=256MB", "max_wal_size=2GB", "autovacuum=on")


def chosen() -> bool:
    """Whether this run of the tests has its stores in PostgreSQL."""
    return os.environ.get(CHOICE) == "postgresql"


@dataclass(frozen=True)
class Cluster:
    """A server that runs; a database is made for whoever asks."""

    folder: Path
    binaries: Path

    def url(self, database: str, **options: str) -> str:
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"postgresql://{self.user}@/{database}?host={self.folder}{more}"

    @property
    def user(self) -> str:
        return "tester"

    def create(self, template: str = "template0", encoding: str = "UTF8") -> str:
        """Make a database, empty or a copy of one that nobody uses, and give its name."""
        name = "t" + secrets.token_hex(6)
        locale = " LOCALE 'C'" if encoding != "UTF8" else ""
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} ENCODING '{encoding}'{locale}")
        return name

    def drop(self, name: str) -> None:
        self.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def run(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement by another way than hsmkm does."""
        with self.connect(database) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(host=str(self.folder), user=self.user, dbname=database, autocommit=True)


@cache
def shared() -> Cluster:
    """Give this process's server; it is started for the first who asks, and ended with the process."""
    cluster, _ = _shared()
    return cluster


def restart() -> None:
    """End this process's server, whoever uses it, and begin it again."""
    cluster, life = _shared()
    life.close()
    life.enter_context(server(cluster, *_more()))


@cache
def _shared() -> tuple[Cluster, ExitStack]:
    """Give the server with what ends it; its folder is gone with the process."""
    folder, life = ExitStack(), ExitStack()
    atexit.register(folder.close)
    atexit.register(life.close)
    place = os.environ.get(PLACE)
    cluster = staying(Path(place)) if place else folder.enter_context(made())
    life.enter_context(server(cluster, *_more()))
    return cluster, life


def _more() -> tuple[str, ...]:
    return TO_STAY if os.environ.get(PLACE) else ()


def binaries() -> Path | None:
    """Find the server's programs: Debian keeps them out of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@contextmanager
def running(*settings: str) -> Iterator[Cluster]:
    """Run a server, and end it whatever happens: with this process at the latest."""
    with made() as cluster, server(cluster, *settings):
        yield cluster


@contextmanager
def made() -> Iterator[Cluster]:
    """Make the folder of a server that does not run yet."""
    folder = Path(tempfile.mkdtemp(prefix="hsmkm-pg-", dir=_place()))
    try:
        yield _filled(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def staying(folder: Path) -> Cluster:
    """Give the server of a folder, which is made if it is not there and stays."""
    if (folder / "whole").exists():
        return Cluster(folder, _installed())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    cluster = _filled(folder)
    (folder / "whole").touch()
    return cluster


def _filled(folder: Path) -> Cluster:
    """Make the files of a server in an empty folder."""
    cluster, owner = Cluster(folder, _installed()), _owner()
    if owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    options = ("-U", cluster.user, "-A", "trust", "-E", "UTF8", "--no-sync")
    _call(owner, cluster.binaries / "initdb", "-D", folder / "data", *options)
    return cluster


def _installed() -> Path:
    place = binaries()
    if place is None:
        pytest.skip("PostgreSQL is not installed: scripts/setup says how to")
    return place


@contextmanager
def server(cluster: Cluster, *settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server of a cluster."""
    options = [word for one in (*SETTINGS, *settings) for word in ("-c", one)]
    command = [cluster.binaries / "postgres", "-D", cluster.folder / "data", "-k", cluster.folder, *options]
    with (
        (cluster.folder / "log").open("ab") as log,
        subprocess.Popen([*_as(_owner()), *map(str, command)], cwd="/", stdout=log, stderr=log) as process,
    ):
        try:
            _wait(cluster, process)
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)
                process.wait(20)


def _wait(cluster: Cluster, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_SECONDS
    while True:
        assert process.poll() is None, (cluster.folder / "log").read_text()
        try:
            cluster.connect().close()
        except psycopg.OperationalError:
            assert time.monotonic() < end, (cluster.folder / "log").read_text()
            time.sleep(0.05)
        else:
            return


def _place() -> str | None:
    """In memory where there is room for it: then a commit that is synced costs no time of a disk."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= ROOM
    return str(memory) if roomy else None


def _owner() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def _as(owner: pwd.struct_passwd | None) -> list[str]:
    """Begin a command: as another user, and ended by the kernel if this process is killed."""
    user = [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"] if owner else []
    return ["setpriv", *user, "--pdeathsig=INT"]


def _call(owner: pwd.struct_passwd | None, *command: object) -> None:
    done = subprocess.run(
        [*_as(owner), *map(str, command)], cwd="/", capture_output=True, text=True, check=False, timeout=READY_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
