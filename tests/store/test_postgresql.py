"""A store in PostgreSQL: what is asked of the server, who waits for whom, and what is said when it cannot."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from sqlalchemy.engine import make_url

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.store import audit, counters, engine, key_sets, meters, orders, parties, schema, snapshot, transfer
from hsmkm.store.anchor import FileAnchor, held
from hsmkm.store.check import check
from hsmkm.store.failures import StoreUnavailableError
from hsmkm.store.store import Store
from tests.database import alter, keep, octets_of, query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.postgresql import Cluster
    from tests.store.conftest import Factory, SoftwareAuthenticator

IDENTITY, CLIENT = bytes(16), b"UTI00004"


@pytest.fixture
def served(server_url: str, authenticator: SoftwareAuthenticator) -> Iterator[Store]:
    with Store.open(server_url, authenticator, "tester") as opened:
        yield opened


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:planted@host/db", "holds a password"),
        ("postgresql:///db?password=planted", "holds a password"),
        ("mysql://host/db", "url cannot be used"),
        ("postgresql://host:port/db", "url cannot be used"),
        ("sqlite:///file.db", "url cannot be used"),
    ],
)
def test_an_address_that_is_not_used_is_refused_without_its_password(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        Store.open(url, None, "tester")
    assert raised.value.hint
    assert "planted" not in repr(raised.value)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be used: connection") as raised:
        Store.open(f"postgresql:///db?host={tmp_path}", None, "tester")
    assert "server" in raised.value.hint


def test_a_database_that_is_not_there_is_named_with_the_way_to_make_it(cluster: Cluster) -> None:
    with pytest.raises(StoreUnavailableError, match='database "nowhere" does not exist') as raised:
        Store.open(cluster.url("nowhere"), None, "tester")
    assert "createdb" in raised.value.hint


def test_a_server_that_could_lose_what_is_committed_is_refused(cluster: Cluster, server_url: str) -> None:
    with pytest.raises(RefusedError, match="cannot keep a store") as raised:
        Store.open(server_url + "&options=-csynchronous_commit%3Doff", None, "tester")
    assert ["synchronous_commit is off" in reason for reason in raised.value.reasons] == [True]
    latin = cluster.create(encoding="LATIN1")
    with pytest.raises(RefusedError, match="cannot keep a store") as raised:
        Store.create(cluster.url(latin))
    assert ["LATIN1" in reason for reason in raised.value.reasons] == [True]
    cluster.drop(latin)


def test_a_database_of_another_program_is_left_alone(cluster: Cluster) -> None:
    name = cluster.create()
    url = cluster.url(name)
    with pytest.raises(RefusedError, match="not a store"):
        Store.open(url, None, "tester")
    alter(url, "CREATE TABLE invoices (number int)")
    with pytest.raises(RefusedError, match="another program's: it has the table invoices"):
        Store.create(url)
    alter(url, "CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES ('ab12')")
    for use in (Store.create, lambda url: Store.open(url, None, "tester")):
        with pytest.raises(RefusedError, match="another program's: it has migrations"):
            use(url)
    assert query(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(2,)]
    cluster.drop(name)


def test_a_role_without_rights_is_told_what_it_lacks(cluster: Cluster, server_url: str) -> None:
    cluster.run("DROP ROLE IF EXISTS stranger")
    cluster.run("CREATE ROLE stranger LOGIN")
    empty = cluster.create()
    for url, use in ((cluster.url(empty), Store.create), (server_url, lambda url: Store.open(url, None, "x"))):
        with pytest.raises(StoreUnavailableError, match="permission denied") as raised:
            use(url.replace(cluster.user + "@", "stranger@"))
        assert "own the database" in raised.value.hint
    cluster.drop(empty)


def test_a_store_behind_in_its_migrations_says_how_to_upgrade_it(server_url: str) -> None:
    query(server_url, "UPDATE alembic_version SET version_num = ?", schema.REVISIONS[-2])
    with pytest.raises(RefusedError, match="older schema") as raised:
        Store.open(server_url, None, "tester")
    assert "hsmkm store upgrade" in raised.value.hint


def test_a_writer_waits_for_the_one_before_and_sees_what_it_wrote(
    server_url: str, authenticator: SoftwareAuthenticator
) -> None:
    def work(name: str) -> list[int]:
        with Store.open(server_url, authenticator, name) as store:
            given: list[int] = []
            for _ in range(20):
                with store.count() as tx:
                    given += counters.reserve(tx, IDENTITY, CLIENT, 2, None)
            return given

    with ThreadPoolExecutor(3) as pool:
        given = [value for values in pool.map(work, "abc") for value in values]
    assert sorted(given) == list(range(1, 121))


def test_a_reader_sees_one_moment_and_cannot_write(served: Store, factory: Factory) -> None:
    with served.read() as tx:
        assert meters.listing(tx) == []
        with served.begin("meter add", "x", {}) as change:
            meters.add(change, factory.meter())
        assert meters.listing(tx) == []
        with pytest.raises(Exception, match="read-only transaction"):
            tx.connection.exec_driver_sql("DELETE FROM meters")


def test_many_rows_are_loaded_and_read_back_without_holding_them(served: Store, factory: Factory) -> None:
    many = [factory.meter(number) for number in range(1, 5000)]
    many.append(factory.meter(5000, serial="ÄÖ\t\\N\n\\."))
    with served.begin("meter add", "many", {}) as tx:
        assert meters.add_many(tx, many) == len(many)
    with served.read() as tx:
        rows = tx.stream(select(schema.meters).order_by(schema.meters.c.system_title))
        assert next(rows)["serial"] == "00000001"
        assert tx.connection.exec_driver_sql("SELECT count(*) FROM pg_cursors").scalar() == 1
        assert sum(1 for _ in rows) == len(many) - 1
        assert meters.get(tx, many[-1].system_title) == many[-1]
    with pytest.raises(RefusedError, match="there already") as raised, served.begin("meter add", "again", {}) as tx:
        tx.insert_rows(schema.meters, ("system_title", "serial", "model", "suite"), [(many[0].system_title, "x", 1, 0)])
    assert "5554" not in str(raised.value.reasons)


def test_text_is_in_the_order_of_its_octets(served: Store) -> None:
    with served.begin("party add", "x", {}) as tx:
        for number, name in enumerate(["b", "A", "_", "a", "B"]):
            parties.add(tx, parties.Party(name, "line", b"LIN0000" + bytes([48 + number])))
    with served.read() as tx:
        assert [party.name for party in parties.listing(tx)] == ["A", "B", "_", "a", "b"]


def test_a_value_that_the_database_does_not_take_is_the_callers_matter(served: Store) -> None:
    with pytest.raises(InputError, match="does not take a value"), served.begin("order add", "x", {}) as tx:
        orders.add(tx, orders.Order("ab" * 32, "a\0b", 1))


def test_what_another_session_holds_too_long_is_named(
    served: Store, server_url: str, authenticator: SoftwareAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0)
    with served.begin("long", "x", {}), Store.open(server_url, authenticator, "other") as other:
        with pytest.raises(StoreUnavailableError, match="lock timeout") as raised, other.begin("short", "x", {}):
            pass
        assert "another process holds it" in raised.value.hint


def test_a_connection_that_breaks_in_a_change_leaves_nothing_of_it_and_the_next_change_goes_on(
    served: Store, cluster: Cluster, server_url: str, factory: Factory
) -> None:
    def change() -> None:
        with served.begin("meter add", "x", {}) as tx:
            meters.add(tx, factory.meter(1))
            end_sessions(cluster, server_url)
            meters.add(tx, factory.meter(2))

    with pytest.raises(StoreUnavailableError, match="broke") as raised:
        change()
    assert "as a whole or not at all" in raised.value.hint
    end_sessions(cluster, server_url)
    with served.begin("meter add", "y", {}) as tx:
        assert tx.sequence == 1
        meters.add(tx, factory.meter(3))
    with served.read() as tx:
        assert [meter.serial for meter in meters.listing(tx)] == ["00000003"]
        assert audit.verify(tx) == []


def test_a_copy_in_a_file_goes_back_into_an_empty_database_and_numbers_go_on(
    served: Store, cluster: Cluster, factory: Factory, authenticator: SoftwareAuthenticator, tmp_path: Path
) -> None:
    meter = factory.meter(order="ab" * 32)
    with served.begin("x", "y", {}) as tx:
        orders.add(tx, orders.Order("ab" * 32, "a.csv", 1))
        meters.add(tx, meter)
        key_sets.add(tx, key_sets.authenticate(authenticator, factory.key_set(meter), meter))
        counters.reserve(tx, IDENTITY, CLIENT, 4, None)
    served.copy_to(tmp_path / "copy.db")
    assert snapshot.describe(tmp_path / "copy.db").audit_sequence == 1
    assert [path.name for path in tmp_path.iterdir()] == ["copy.db"]
    name = cluster.create()
    transfer.from_file(tmp_path / "copy.db", cluster.url(name))
    for url in (f"sqlite:{tmp_path / 'copy.db'}", cluster.url(name)):
        with Store.open(url, authenticator, "tester") as store:
            with store.begin("order add", "x", {}) as tx:
                orders.add(tx, orders.Order("cd" * 32, "b.csv", 1))
                assert counters.reserve(tx, IDENTITY, CLIENT, 1, None) == range(5, 6)
            with store.read() as tx:
                assert [*check(tx), *audit.verify(tx)] == []
    with pytest.raises(RefusedError, match="holds a store already"):
        transfer.from_file(tmp_path / "copy.db", cluster.url(name))
    cluster.drop(name)


class Interrupted(FileAnchor):
    """An anchor before whose writing something happens, once."""

    def __init__(self, path: Path, before: Callable[[], None]) -> None:
        super().__init__(path)
        self.before: Callable[[], None] | None = before

    def write(self, content: bytes) -> None:
        if self.before:
            before, self.before = self.before, None
            before()
        super().write(content)


def test_no_other_host_is_at_the_anchor_while_one_raises_it(
    server_url: str, authenticator: SoftwareAuthenticator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two hosts have a lock file each: only the server's lock keeps them apart."""
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0)
    met: list[str] = []

    def meanwhile() -> None:
        with pytest.raises(StoreUnavailableError) as raised:
            Store.open(server_url, authenticator, "other", anchor=FileAnchor(tmp_path / "others"))
        met.append(raised.value.message)

    anchor = Interrupted(tmp_path / "anchor", meanwhile)
    with Store.open(server_url, authenticator, "one", anchor=anchor) as store, store.begin("x", "y", {}):
        pass
    assert len(met) == 1
    assert "lock timeout" in met[0]


def test_an_anchor_that_was_put_back_when_the_lock_was_lost_is_raised_again(
    cluster: Cluster, server_url: str, authenticator: SoftwareAuthenticator, tmp_path: Path
) -> None:
    """The connection dies at the worst moment, another host takes the lock, and then we write what is old."""
    path = tmp_path / "anchor"

    def meanwhile() -> None:
        end_sessions(cluster, server_url)
        with Store.open(server_url, authenticator, "other", anchor=FileAnchor(path.with_name("others"))) as other:
            for _ in range(3):
                with other.begin("note", "x", {}):
                    pass

    anchor = Interrupted(path, meanwhile)
    with Store.open(server_url, authenticator, "one", anchor=anchor) as store:
        with store.begin("note", "x", {}):
            pass
        found = held(anchor, authenticator)
    assert found is not None
    assert found.advance == 4


def test_a_restored_dump_is_behind_its_anchor(
    server_url: str, authenticator: SoftwareAuthenticator, tmp_path: Path
) -> None:
    def work() -> None:
        anchor = FileAnchor(tmp_path / "anchor")
        with Store.open(server_url, authenticator, "tester", anchor=anchor) as store, store.begin("note", "x", {}):
            pass

    work()
    put_back = keep(server_url, tmp_path / "dump.sql")
    work()
    put_back()
    with pytest.raises(IntegrityError, match="restored or cut short"):
        work()


def test_keys_that_were_destroyed_are_swept_out_of_the_files_unless_somebody_reads(
    served: Store, server_url: str, factory: Factory, authenticator: SoftwareAuthenticator
) -> None:
    meter = factory.meter()
    one = key_sets.authenticate(authenticator, factory.key_set(meter), meter)
    with served.begin("x", "y", {}) as tx:
        meters.add(tx, meter)
        key_sets.add(tx, one)
    with served.begin("meter destroy", "y", {}) as tx:
        key_sets.destroy(tx, one.ref)
    assert one.keys[0].wrapped in octets_of(server_url)
    with served.read() as tx:
        assert meters.listing(tx) != []
        assert not served.sweep()
    assert served.sweep()
    assert one.keys[0].wrapped not in octets_of(server_url)


def end_sessions(cluster: Cluster, url: str) -> None:
    with cluster.connect() as connection:
        ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
        connection.execute(ended, [make_url(url).database])
