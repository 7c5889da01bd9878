"""How large the parties of scripts/million have become: stores, the audit logs in them, and packages."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from tests import postgresql
from tests.realm import Realm

PARTIES = ("factory", "utility", "other-concentrator")
MEGABYTE = 2**20

AUDIT = """SELECT count(*), sum(length(time) + length(actor) + length(action) + length(subject) + length(detail) + 120)
FROM audit"""
"""Counts the audit log's records and their octets: text, three digests of 32 octets, and three numbers."""

IN_FILE = "SELECT sum(pgsize) FROM dbstat WHERE name IN ('meters', 'ix_meters_serial', 'key_sets')"
WHOLE = (
    "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = '{}'::regnamespace"
)
ON_SERVER = WHOLE + " AND relname IN ('meters', 'key_sets')"


def sizes(realm: Realm) -> dict[str, dict[str, float]]:
    """Tell in megabytes how large the store, the audit log in it and the packages of each party are."""
    found: dict[str, dict[str, float]] = {"stores_mb": {}, "audit_mb": {}, "audit_records": {}, "packages_mb": {}}
    for name in PARTIES:
        records, octets = _asked(realm, name, AUDIT, AUDIT.replace("FROM audit", f'FROM "{name}".audit'))
        found["audit_records"][name] = records
        found["audit_mb"][name] = round(octets / MEGABYTE, 2)
        found["stores_mb"][name] = round(_store(realm, name) / MEGABYTE, 1)
        packages = sum(path.stat().st_size for path in realm.home(name).glob("packages/*"))
        found["packages_mb"][name] = round(packages / MEGABYTE, 1)
    return found


def meter_octets(realm: Realm, party: str) -> int:
    """Tell how many octets meters and their key sets take in a party's store, with their indexes."""
    return _asked(realm, party, IN_FILE, ON_SERVER.format(party))[0]


def _store(realm: Realm, name: str) -> int:
    """Measure a store: a file with its log, or the schema on the server with its indexes."""
    if postgresql.chosen():
        return _asked(realm, name, "", WHOLE.format(name))[0]
    path = _path(realm, name)
    return sum(one.stat().st_size for one in path.parent.glob(path.name + "*"))


def _asked(realm: Realm, name: str, in_file: str, on_server: str) -> list[int]:
    """Ask a party's store for numbers, in the words of the one kind or the other."""
    if postgresql.chosen():
        row: Any = postgresql.shared().run(on_server, str(make_url(realm.url(name)).database))[0]
    else:
        with closing(sqlite3.connect(f"file:{_path(realm, name)}?mode=ro", uri=True)) as connection:
            row = connection.execute(in_file).fetchone()
    return [int(value or 0) for value in row]


def _path(realm: Realm, name: str) -> Path:
    return Path(realm.url(name).removeprefix("sqlite:"))
