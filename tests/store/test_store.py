from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import LargeBinary, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from hsmkm.errors import InputError, PolicyError, RefusedError
from hsmkm.store import audit, engine, meters, schema
from hsmkm.store.engine import open_engine
from hsmkm.store.failures import StoreUnavailableError
from hsmkm.store.migrate import configuration
from hsmkm.store.store import Store
from tests.database import alter, path_of

if TYPE_CHECKING:
    from tests.store.conftest import Factory, SoftwareAuthenticator


def test_the_migrations_lead_to_the_schema_that_the_program_knows(url: str) -> None:
    database = open_engine(url)
    with database.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    database.dispose()
    script = ScriptDirectory.from_config(configuration())
    assert script.get_current_head() == schema.HEAD
    assert tuple(step.revision for step in reversed(list(script.walk_revisions()))) == schema.REVISIONS


def test_tables_of_one_row_for_each_meter_have_no_rowid(file_url: str) -> None:
    with sqlite3.connect(path_of(file_url)) as connection:
        found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall())
    connection.close()
    for name in ("meters", "key_sets", "key_states", "counters", "receive_counters", "holders", "leases"):
        assert "WITHOUT ROWID" in found[name]


def test_a_store_is_a_file_that_only_its_owner_reads(file_url: str) -> None:
    assert path_of(file_url).stat().st_mode & 0o777 == 0o600


def test_making_a_store_again_leaves_it_as_it_is(store: Store, factory: Factory, url: str) -> None:
    with store.begin("meter add", "one", {}) as tx:
        meters.add(tx, factory.meter())
    Store.create(url)
    with store.read() as tx:
        assert meters.get(tx, factory.meter().system_title) == factory.meter()
        assert [row["number"] for row in tx.all(schema.epoch.select())] == [1]


def test_sqlite_writes_ahead_and_syncs_each_commit(file_url: str, authenticator: SoftwareAuthenticator) -> None:
    with Store.open(file_url, authenticator, "tester") as store, store.read() as tx:
        assert tx.connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert tx.connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_newer_schema_is_refused_and_left_alone(url: str) -> None:
    words = "newer than this program"
    alter(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RefusedError, match=words):
        Store.open(url, None, "tester")
    with pytest.raises(RefusedError, match=words):
        Store.create(url)


def test_an_older_schema_is_refused_with_the_way_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "HEAD", "9999")
    with pytest.raises(RefusedError, match=f"older schema {schema.REVISIONS[-1]}") as raised:
        Store.open(url, None, "tester")
    assert "upgrade" in raised.value.hint


def test_what_is_not_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no store at"):
        Store.open(f"sqlite:{tmp_path / 'missing.db'}", None, "tester")
    assert not (tmp_path / "missing.db").exists()
    (tmp_path / "empty.db").touch()
    with pytest.raises(RefusedError, match="not a store"):
        Store.open(f"sqlite:{tmp_path / 'empty.db'}", None, "tester")
    with pytest.raises(InputError):
        Store.open("nonsense", None, "tester")


def test_a_change_is_durable_with_one_audit_record(
    store: Store, factory: Factory, url: str, authenticator: SoftwareAuthenticator
) -> None:
    with store.begin("meter add", "two meters", {"count": 2}) as tx:
        assert tx.sequence == 1
        meters.add_many(tx, [factory.meter(1), factory.meter(2)])
    with Store.open(url, authenticator, "another") as other, other.read() as tx:
        assert len(meters.listing(tx)) == 2
        [record] = audit.log(tx)
    assert (record.sequence, record.actor, record.action, record.subject) == (1, "tester", "meter add", "two meters")
    assert record.detail == {"count": 2}
    assert record.time == "2026-03-01T12:00:00.000000Z"


def test_a_change_that_fails_leaves_nothing_and_no_record(store: Store, factory: Factory) -> None:
    with suppress(KeyboardInterrupt), store.begin("meter add", "one", {}) as tx:
        meters.add(tx, factory.meter())
        raise KeyboardInterrupt
    with store.read() as tx:
        assert meters.listing(tx) == []
        assert audit.log(tx) == []
    with store.begin("meter add", "one", {}) as tx:
        assert tx.sequence == 1


def test_a_process_that_dies_before_its_commit_leaves_nothing(url: str, store: Store) -> None:
    script = f"""
import os
from hsmkm.store.store import Store
from tests.database import alter, path_of
from hsmkm.store import orders
from hsmkm.token.types import Mac
class Keys:
    integrity_key = 1
    def mac(self, data): return Mac(1, bytes(32))
    def verify(self, data, mac): pass
store = Store.open({url!r}, Keys(), "dying")
with store.begin("order add", "x", {{}}) as tx:
    orders.add(tx, orders.Order("aa" * 32, "order.csv", 1))
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, env=dict(os.environ)).returncode == 9
    with store.read() as tx:
        assert tx.all(schema.orders.select()) == []
        assert audit.log(tx) == []


def test_two_changes_follow_one_another(store: Store, url: str, authenticator: SoftwareAuthenticator) -> None:
    with Store.open(url, authenticator, "second") as other:
        with store.begin("first", "a", {}):
            pass
        with other.begin("second", "b", {}) as tx:
            assert tx.sequence == 2
        with store.begin("third", "c", {}) as tx:
            assert tx.sequence == 3
    with store.read() as tx:
        assert audit.verify(tx) == []
        assert [record.actor for record in audit.log(tx)] == ["tester", "second", "tester"]


def test_a_reader_sees_nothing_of_an_unfinished_change(store: Store, factory: Factory) -> None:
    with store.begin("meter add", "one", {}) as tx:
        meters.add(tx, factory.meter())
        with store.read() as reader:
            assert meters.listing(reader) == []
    with store.read() as reader:
        assert len(meters.listing(reader)) == 1


def test_a_change_inside_a_change_is_a_mistake(store: Store) -> None:
    with (
        store.begin("outer", "a", {}),
        pytest.raises(RuntimeError, match="already open"),
        store.begin("inner", "b", {}),
    ):
        pass


def test_without_the_token_a_store_is_for_listing(store: Store, factory: Factory, url: str) -> None:
    with store.begin("meter add", "one", {}) as tx:
        meters.add(tx, factory.meter(address="10.0.0.1:4059"))
    with Store.open(url, None, "reader") as listing:
        with listing.read() as tx:
            assert [meter.serial for meter in meters.listing(tx)] == ["00000001"]
        with pytest.raises(PolicyError), listing.begin("meter add", "one", {}):
            pass


def test_what_reads_cannot_write(store: Store, factory: Factory) -> None:
    with store.read() as tx, pytest.raises(PolicyError, match="only reads"):
        meters.add(tx, factory.meter())


def test_writers_in_two_threads_wait_for_one_another(url: str, authenticator: SoftwareAuthenticator) -> None:
    def write(name: str) -> None:
        with Store.open(url, authenticator, name) as opened:
            for number in range(20):
                with opened.begin("count", str(number), {}):
                    pass

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ("one", "two")))
    with Store.open(url, authenticator, "reader") as opened, opened.read() as tx:
        assert audit.verify(tx) == []
        assert len(audit.log(tx)) == 40


def test_connections_of_as_many_threads_as_read_at_once_are_kept(
    url: str, authenticator: SoftwareAuthenticator
) -> None:
    threads, made = 12, []
    with Store.open(url, authenticator, "reader") as store, ThreadPoolExecutor(threads) as pool:
        event.listen(store._engine, "connect", lambda *_: made.append(1))
        for _ in range(3):
            together = Barrier(threads)

            def look(together: Barrier = together) -> None:
                with store.read():
                    together.wait(30)

            for each in [pool.submit(look) for _ in range(threads)]:
                each.result()
    assert len(made) < threads


def test_a_store_that_another_holds_too_long_is_unavailable(
    store: Store, url: str, authenticator: SoftwareAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0)
    with (
        store.begin("long", "x", {}),
        Store.open(url, authenticator, "other") as other,
        pytest.raises(StoreUnavailableError, match=r"locked|lock timeout"),
        other.begin("short", "x", {}),
    ):
        pass


def test_what_one_meter_was_refused_is_found_without_reading_the_whole_log(
    file_url: str, authenticator: SoftwareAuthenticator
) -> None:
    with Store.open(file_url, authenticator, "tester") as store:
        for subject in ("4D4D4D0000000001", "4D4D4D0000000001", "4D4D4D0000000002"):
            with store.begin(f"{audit.REFUSED}replay", subject, {}):
                pass
        with store.begin("meter-read", "4D4D4D0000000001", {}):
            pass
        asked: list[str] = []
        with store.read() as tx:
            event.listen(tx.connection, "before_cursor_execute", lambda *words: asked.append(words[2]))
            (found,) = audit.tally(tx, audit.REFUSED, subject="4D4D4D0000000001")
            plan = tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked[0]}", ("",) * asked[0].count("?")).all()
    assert (found.action, found.count) == ("refused: replay", 2)
    assert any("USING INDEX ix_audit_refused (subject=?)" in str(step) for step in plan)


def test_the_schema_can_be_written_for_postgresql_too() -> None:
    for table in schema.metadata.sorted_tables:
        written = str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call] # untyped there
        assert "ROWID" not in written
        assert written.count("BYTEA") == sum(isinstance(column.type, LargeBinary) for column in table.columns)
