from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from hsmkm.errors import IntegrityError, PolicyError, RefusedError
from hsmkm.store import (
    approvals,
    audit,
    campaigns,
    certificates,
    certified_keys,
    check,
    counters,
    groups,
    holders,
    intents,
    key_sets,
    key_states,
    meters,
    models,
    officers,
    orders,
    packages,
    parties,
    permissions,
    renewals,
    retirement,
    schema,
    sealed_sets,
    transactions,
    urgent,
)
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.campaign import CampaignState
from hsmkm.store.certificates import CertificateRecord, Issuance, Source
from hsmkm.store.guard import Opening
from hsmkm.store.key_set import KeySetRef, KeyState, StoredKey
from hsmkm.store.packages import Direction, PackageRecord
from hsmkm.store.problem import Problem
from hsmkm.store.store import Store, Transaction
from hsmkm.token.types import KeyRole
from tests.database import query

if TYPE_CHECKING:
    from tests.store.conftest import Factory, SoftwareAuthenticator

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=7)
TITLE = b"UTI\x00\x00\x00\x00\x01"
AUTHENTICATED = {rows.table.name: rows for rows in (*check.AUTHENTICATED, meters.ROWS)}
UNCOVERED = {
    "leases": "a lock between processes, renewed without the token: who alters it makes two speak at once, or none, and"
    " counters and renewals stay apart",
    "campaign_counts": "what is counted of its meters: by it a campaign goes on, is at its end, or stops by itself",
    "campaign_slices": "locks between workers, as leases are",
    "campaign_meters": "what is left to do, moved thrice for each meter: whoever calls one done has not renewed it, as"
    " its keys show, and whoever adds one has it renewed",
}
"""Tables that carry no MAC, and why a change there gives nobody a key or a counter."""
UNCOVERED_COLUMNS = {
    ("campaigns", "paced"): "it moves with every slice: who alters it passes the rate once, or makes the campaign wait",
}
COVERED_OTHERWISE = {
    "models": {"models", "key_sets", "meters"},
    "orders": {"orders", "key_sets"},
    "epoch": {"store_state"},
    "holder_lists": {"holder_lists", "holders"},
}
COLUMNS = [
    (table.name, column.name)
    for table in schema.metadata.sorted_tables
    for column in table.columns
    if table.name not in UNCOVERED and (table.name, column.name) not in UNCOVERED_COLUMNS
]
"""Every column of the others: one that is added must be covered."""

STRANGE: dict[type, tuple[object, ...]] = {bytes: ("x", 2**62), str: (b"x",), int: (1.5, 2**62)}
"""What somebody can write into a column of SQLite that was made for this kind, and no moment nor number of a row is."""


@pytest.fixture
def full(store: Store, factory: Factory) -> Store:
    """A store with a row in every table that carries MACs."""
    fill(store, factory)
    return store


def fill(store: Store, factory: Factory) -> None:
    with store.begin("fill", "everything", {}) as tx:
        models.add_keys(tx, models.ModelKeys("uti-1", 0, 1, factory.keys()))
        orders.add(tx, orders.Order("ab" * 32, "a.csv", 1))
        meter = factory.meter(order="ab" * 32)
        meters.add(tx, meter)
        key_set = key_sets.authenticate(factory.authenticator, factory.key_set(meter), meter)
        key_sets.add(tx, key_set)
        key_states.transition(tx, key_set.ref, KeyState.ACTIVE)
        key_sets.set_destroy_after(tx, key_set.ref, LATER)
        meters.update(tx, replace(meter, address="h:1", concentrator="dc-1", registered=NOW, state="registered"))
        counters.reserve_trial(tx, bytes(16), TITLE, 50, 3, 1000)
        counters.accept_received(tx, bytes(16), TITLE, 9)
        transactions.reserve(tx, TITLE, 2)
        permissions.grant(tx, "third", TITLE)
        officers.put(tx, officers.Officer("alice", ("officer", "auditor"), bytes(32)))
        decision = approvals.Decision("alice", bytes(32), bytes(32), "2026-01-01T00:00:00Z")
        approvals.put(tx, approvals.Approval("a-1", "x", "y", bytes(32), "bob", NOW, LATER, (decision,)))
        parties.add(tx, parties.Party("utility-a", "utility", TITLE, ("UTI",), "relay", "h:1", {"tls": bytes(32)}))
        certificates.record_issued(tx, Issuance("CN=i", b"\x07", "tls", "CN=x", bytes(32), NOW, LATER))
        leaf = CertificateRecord(bytes(32), b"der", "tls", "CN=x", "CN=i", b"\x07", NOW, LATER, "me", Source.OWN)
        certificates.complete_issued(tx, leaf)
        certified_keys.claim(tx, bytes(32), "tls", "CN=x")
        certificates.revoke(tx, "CN=i", b"\x07", NOW, "superseded")
        record = ("id-1", Direction.SENT, "delivery", 1, "utility-a", NOW, LATER, bytes(32), "sent", 1, b"receipt")
        packages.add(tx, PackageRecord(*record))
        holders.add_many(tx, [holders.Holder(bytes(16), key_set.ref, "utility-a", "id-1")])
        certificates.record_crl(tx, "CN=i", 1, (NOW, LATER), bytes(32))
        renewals.create(tx, key_set.ref, 2, (KeyRole.GUEK,), "guek")
        intents.outcome(tx, intents.open(tx, TITLE, "key-transfer", {"generation": 2}), "acknowledged")
        groups.add(tx, groups.Group("north", 0, 102, "utility-a", groups.Renewal.REMOVED))
        groups.add_keys(tx, 0, group_keys(factory, "north"))
        groups.put_member(tx, groups.Member("north", meter.system_title, 0, 1))
        urgent.queue_group(tx, "north", 1, "a member is lost")
        urgent.settle_group(tx, "north", 2)
        campaigns.turn(tx, campaigns.create(tx, "spring", "renew", {"slice": 4}), CampaignState.RUNNING, "it is time")
        retirement.retire(tx, bytes(32))


def group_keys(factory: Factory, name: str, number: int = 1) -> groups.GroupKeys:
    made = factory.keys()
    keys = tuple(key for key in made if key.role in groups.SHARED_ROLES)
    return groups.GroupKeys(name, number, 1, keys, groups.GroupKeyState.CURRENT)


def in_group(tx: Transaction, factory: Factory, group: str, number: int, *keys: StoredKey) -> None:
    """Add a meter to a group, with a key set that carries these keys."""
    meter = factory.meter(number)
    meters.add(tx, meter)
    made = factory.key_set(meter)
    given = {key.role: key for key in (*made.keys, *keys)}
    key_sets.add(tx, key_sets.authenticate(factory.authenticator, replace(made, keys=tuple(given.values())), meter))
    if group:
        groups.put_member(tx, groups.Member(group, meter.system_title, 0, 1))


def tamper(url: str, statement: str, *values: object) -> None:
    query(url, statement, *values)


def altered(value: Any) -> object:  # noqa: ANN401 - whatever a column holds
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1]) if value else b"x"
    return 1 if value is None else value + (1 if isinstance(value, int) else "x")


def problems(store: Store) -> list[Problem]:
    with store.read() as tx:
        return list(check.check(tx))


def test_a_store_that_nobody_touched_has_no_problem(full: Store) -> None:
    assert problems(full) == []
    with full.read() as tx:
        assert audit.verify(tx) == []


@pytest.mark.parametrize("table", sorted({table for table, _ in COLUMNS}))
def test_an_altered_column_is_named_and_refused(full: Store, url: str, table: str) -> None:
    for column in (column for each, column in COLUMNS if each == table):
        with full.read() as tx:
            ((before,),) = tx.connection.exec_driver_sql(f'SELECT "{column}" FROM "{table}"')  # noqa: S608 - test's own
        assert before is not None or (table, column) == ("renewals", "campaign")
        tamper(url, f'UPDATE "{table}" SET "{column}" = ?', altered(before))  # noqa: S608 - test's own
        assert COVERED_OTHERWISE.get(table, {table}) & named(full), column
        if table != "audit" and (table, column) != ("key_sets", "batch"):
            assert is_refused(full, table), column
        tamper(url, f'UPDATE "{table}" SET "{column}" = ?', before)  # noqa: S608 - test's own
    assert named(full) == set(), "what was altered is as it was before"


def named(store: Store) -> set[str]:
    """The tables in which a check and the audit chain find a problem."""
    with store.read() as tx:
        return {problem.table for problem in (*check.check(tx), *audit.verify(tx))}


@pytest.mark.parametrize("table", sorted({table for table, _ in COLUMNS}))
def test_a_cell_of_a_kind_that_is_never_stored_is_named_as_any_other_alteration(
    file_url: str, authenticator: SoftwareAuthenticator, factory: Factory, table: str
) -> None:
    columns = [column for each, column in COLUMNS if each == table]
    assert columns
    with Store.open(file_url, authenticator, "tester") as store:
        fill(store, factory)
        kinds = schema.metadata.tables[table].c
        for column, value in ((one, value) for one in columns for value in STRANGE[kinds[one].type.python_type]):
            with store.read() as tx:
                before = tx.connection.exec_driver_sql(f'SELECT "{column}" FROM "{table}"').scalar()  # noqa: S608 - test's own
            try:
                tamper(file_url, f'UPDATE "{table}" SET "{column}" = ?', value)  # noqa: S608 - test's own
            except sqlite3.IntegrityError:  # the one kind of column in which SQLite keeps whole numbers only
                continue
            assert COVERED_OTHERWISE.get(table, {table}) & named(store) or value == before, (column, value)
            tamper(file_url, f'UPDATE "{table}" SET "{column}" = ?', before)  # noqa: S608 - test's own


def is_refused(store: Store, table: str) -> bool:
    try:
        use(store, table)
    except (IntegrityError, RefusedError):
        return True
    return False


@pytest.mark.parametrize("column", ["suite", "storage_key", "state", "keys", "mac_key", "mac", "destroy_after"])
def test_a_sealed_set_with_such_a_cell_is_refused_before_it_goes_to_a_worker(
    file_url: str, authenticator: SoftwareAuthenticator, factory: Factory, column: str
) -> None:
    with Store.open(file_url, authenticator, "tester") as store:
        fill(store, factory)
        value, *_ = STRANGE[schema.key_sets.c[column].type.python_type]
        tamper(file_url, f"UPDATE key_sets SET {column} = ?", value)  # noqa: S608 - test's own
        with store.read() as tx, pytest.raises(IntegrityError, match=f"key_sets {TITLE.hex().upper()}/0/1/1"):
            sealed_sets.of_meters(tx, [TITLE])


def use(store: Store, table: str) -> None:
    """Use the rows of a table as the program does, for a change."""
    with store.begin("use", table, {}, although_retired=True) as tx:
        if table in ("holders", "holder_lists"):
            assert len(holders.of_package(tx, "id-1")) == 1
            holders.for_meter(tx, TITLE)
        if table in AUTHENTICATED and table != "meters":
            AUTHENTICATED[table].rows(tx, AUTHENTICATED[table].everything())
        if table in ("meters", "models", "orders"):
            assert [meter.serial for meter in meters.listing(tx)] == ["00000001"]
            models.initial(tx, "uti-1", meters.require(tx, TITLE), 0, 1)
        if table in ("meters", "orders", "key_sets"):
            key_sets.get(tx, KeySetRef(TITLE, 0, 1, 1))


@pytest.mark.parametrize("table", sorted(AUTHENTICATED))
def test_a_deleted_row_is_named_and_the_store_refused_at_opening(
    full: Store, url: str, authenticator: SoftwareAuthenticator, table: str
) -> None:
    full.close()
    tamper(url, f'DELETE FROM "{table}"')  # noqa: S608 - test's own
    with Store.open(url, authenticator, "checker", opening=Opening.INSPECTION) as store:
        assert f"{table} as a whole: it has 0 row(s), and 1 were written" in map(str, problems(store))
    with pytest.raises(IntegrityError, match=rf"{table}: it has 0 row\(s\)"):
        Store.open(url, authenticator, "user")


def exchanged(url: str, table: str, *columns: str) -> None:
    """Exchange these columns of the rows of one table, of which there are two, numbered 1 and 2."""
    (number,) = schema.metadata.tables[table].primary_key.columns.keys()
    names = ", ".join(f'"{column}"' for column in columns)
    tamper(url, f'CREATE TABLE kept AS SELECT {number} AS place, {names} FROM "{table}"')  # noqa: S608 - test's own
    for one, other in ((1, 2), (2, 1)):
        for column in columns:
            statement = (
                f'UPDATE "{table}" SET "{column}" = (SELECT "{column}" FROM kept WHERE place = ?) WHERE {number} = ?'  # noqa: S608 - test's own
            )
            tamper(url, statement, other, one)
    tamper(url, "DROP TABLE kept")


@pytest.mark.parametrize("table", ["renewals", "intents", "orders", "models"])
def test_rows_that_exchanged_what_they_say_are_named(full: Store, url: str, table: str) -> None:
    with full.begin("more", "x", {}, although_retired=True) as tx:
        renewals.create(tx, KeySetRef(TITLE, 0, 2, 1), 2, (KeyRole.GAK,), "gak")
        intents.open(tx, TITLE, "key-transfer", {"generation": 3})
        orders.add(tx, orders.Order("cd" * 32, "b.csv", 2))
        models.intern(tx, "uti-2")
    assert problems(full) == []
    mine = {"models": ("suite", "storage_key", "keys"), "orders": ("name", "rows")}
    columns = mine.get(table, tuple(name for name in AUTHENTICATED[table].columns if name != "id"))
    exchanged(url, table, *columns, "revision", "mac_key", "mac")
    named = {problem.row for problem in problems(full) if problem.table == table}
    assert named >= {" ".join(str(row) for row in rows) for rows in keys_of(full, AUTHENTICATED[table])}


def keys_of(store: Store, rows: AuthenticatedTable) -> list[list[object]]:
    with store.read() as tx:
        return [[row[name] for name in rows.key] for row in tx.all(rows.everything())]


def test_what_somebody_was_given_is_neither_added_nor_taken_away(full: Store, url: str) -> None:
    others = ", ".join(name for name in holders.COLUMNS if name != "identity")
    tamper(url, f"INSERT INTO holders (identity, {others}) SELECT ?, {others} FROM holders", b"\x01")  # noqa: S608 - test's own
    named = [f"holders {TITLE.hex().upper()} id-1: it does not fit its mac"]
    assert [str(problem) for problem in problems(full)] == named
    for read in (holders.for_meter, holders.for_key):
        with full.read() as tx, pytest.raises(IntegrityError, match=f"holders {TITLE.hex().upper()} id-1"):
            read(tx, TITLE if read is holders.for_meter else bytes(16))
    with full.read() as tx, pytest.raises(IntegrityError, match=f"holders {TITLE.hex().upper()} id-1"):
        holders.for_meters(tx, [TITLE])
    tamper(url, "DELETE FROM holders")
    assert [str(problem) for problem in problems(full)] == named
    with full.read() as tx, pytest.raises(IntegrityError, match="holder_lists id-1"):
        holders.of_package(tx, "id-1")


def test_holders_of_another_package_and_meter_are_left_alone(full: Store, url: str, factory: Factory) -> None:
    other = KeySetRef(factory.meter(2).system_title, 0, 1, 1)
    with full.begin("export", "id-2", {}, although_retired=True) as tx:
        holders.add_many(tx, [holders.Holder(bytes([n]) * 16, other, "dc-1", f"id-{n}") for n in (2, 3)])
    tamper(url, "UPDATE holders SET given = given + 1 WHERE package_id = 'id-2'")
    with full.read() as tx:
        assert [item.party for item in holders.for_key(tx, bytes([3]) * 16)] == ["dc-1"]
        assert [item.party for item in holders.of_package(tx, "id-1")] == ["utility-a"]
        with pytest.raises(IntegrityError):
            holders.for_meter(tx, other.system_title)
    assert [problem.row for problem in problems(full)] == [f"{factory.meter(2).title} id-2"]


def test_a_compromised_generation_is_not_active_again_by_its_state_of_before(
    store: Store, factory: Factory, url: str, authenticator: SoftwareAuthenticator
) -> None:
    meter = factory.meter()
    key_set = key_sets.authenticate(factory.authenticator, factory.key_set(meter), meter)
    with store.begin("x", "y", {}) as tx:
        meters.add(tx, meter)
        key_sets.add(tx, key_set)
        key_states.transition(tx, key_set.ref, KeyState.ACTIVE)
    tamper(url, "CREATE TABLE kept AS SELECT * FROM key_states")
    with store.begin("meter-compromise", "y", {}) as tx:
        key_states.transition(tx, key_set.ref, KeyState.COMPROMISED)
    tamper(url, "DELETE FROM key_states")
    tamper(url, "INSERT INTO key_states SELECT * FROM kept")
    tamper(url, "DROP TABLE kept")
    text = "it has rows of an earlier time, or of another store"
    assert f"key_states as a whole: {text}" in map(str, problems(store))
    with pytest.raises(IntegrityError, match=f"key_states: {text}"):
        Store.open(url, authenticator, "user")


def test_the_newest_generation_that_was_deleted_is_missed(
    store: Store, factory: Factory, url: str, authenticator: SoftwareAuthenticator
) -> None:
    meter = factory.meter()
    with store.begin("x", "y", {}) as tx:
        meters.add(tx, meter)
        for generation in (1, 2):
            one = factory.key_set(meter, generation, KeyState.ACTIVE)
            key_sets.add(tx, key_sets.authenticate(factory.authenticator, one, meter))
    tamper(url, "DELETE FROM key_sets WHERE generation = 2")
    assert [str(problem) for problem in problems(store)] == ["key_sets as a whole: it has 1 row(s), and 2 were written"]
    with pytest.raises(IntegrityError, match="key_sets: it has 1 row"):
        Store.open(url, authenticator, "user")


def test_a_listing_names_the_altered_row_where_the_token_is(full: Store, url: str) -> None:
    tamper(url, "UPDATE parties SET certificates = replace(certificates, '00', '11')")
    with full.read() as tx, pytest.raises(IntegrityError, match="parties utility-a does not fit its mac"):
        parties.get(tx, "utility-a")


def test_an_untouched_meters_address_cannot_be_slipped_in(store: Store, factory: Factory, url: str) -> None:
    meter = factory.meter()
    with store.begin("x", "y", {}) as tx:
        meters.add(tx, meter)
        key_sets.add(tx, key_sets.authenticate(factory.authenticator, factory.key_set(meter), meter))
    tamper(url, "UPDATE meters SET address = 'evil:1'")
    with store.read() as tx, pytest.raises(IntegrityError, match="meters 5554490000000001"):
        meters.get(tx, meter.system_title)
    assert [problem.table for problem in problems(store)] == ["meters"]


@pytest.mark.parametrize(("column", "value"), [("serial", "9"), ("model", 2), ("suite", 1), ("order", 2)])
def test_an_untouched_meters_identity_is_covered_by_its_key_set(
    store: Store, factory: Factory, url: str, column: str, value: object
) -> None:
    meter = factory.meter(order="ab" * 32)
    with store.begin("x", "y", {}) as tx:
        orders.add(tx, orders.Order("ab" * 32, "a.csv", 1))
        orders.add(tx, orders.Order("cd" * 32, "b.csv", 1))
        meters.add(tx, meter)
        models.intern(tx, "uti-2")
        key_set = key_sets.authenticate(factory.authenticator, factory.key_set(meter), meter)
        key_sets.add(tx, key_set)
    tamper(url, f'UPDATE meters SET "{column}" = ?', value)  # noqa: S608 - test's own
    with store.read() as tx, pytest.raises(IntegrityError, match=r"key_sets 5554490000000001/0/1/1 does not fit"):
        key_sets.get(tx, key_set.ref)
    assert [str(problem) for problem in problems(store)] == ["key_sets 5554490000000001/0/1/1: it does not fit its mac"]


def test_a_key_set_moved_to_another_meter_is_named(store: Store, factory: Factory, url: str) -> None:
    one, two = factory.meter(1), factory.meter(2)
    with store.begin("x", "y", {}) as tx:
        meters.add_many(tx, [one, two])
        key_sets.add(tx, key_sets.authenticate(factory.authenticator, factory.key_set(one), one))
    tamper(url, "UPDATE key_sets SET system_title = ?", two.system_title)
    assert {(problem.table, problem.row) for problem in problems(store)} == {
        ("key_sets", f"{two.title}/0/1/1"),
        ("meters", one.title),
    }


def test_a_meter_that_nothing_covers_is_named_unless_it_has_its_own_mac(store: Store, factory: Factory) -> None:
    with store.begin("x", "y", {}) as tx:
        meters.add(tx, factory.meter(1))
        meters.add(tx, factory.meter(2), own_mac=True)
    assert [problem.row for problem in problems(store)] == [factory.meter(1).title]


def test_a_batch_without_audit_record_and_a_state_without_key_set_are_named(full: Store, url: str) -> None:
    tamper(url, "UPDATE key_sets SET batch = 77")
    assert [problem.text for problem in problems(full)] == ["there is no audit record of its batch"]
    tamper(url, "DELETE FROM key_sets")
    assert {problem.text for problem in problems(full)} == {
        "it has 0 row(s), and 1 were written",
        "there is no such key set",
    }


def test_a_key_that_two_identities_share_is_named(store: Store, factory: Factory) -> None:
    one, two = factory.meter(1), factory.meter(2)
    first = factory.key_set(one)
    stolen = StoredKey(KeyRole.GUEK, b"\x01" * 16, first.key(KeyRole.GUEK).wrapped)
    second = replace(factory.key_set(two), keys=(stolen,))
    copied = replace(factory.key_set(one, 2), keys=(first.key(KeyRole.GBEK), *factory.keys()[:2]))
    with store.begin("x", "y", {}) as tx:
        meters.add_many(tx, [one, two])
        for key_set, meter in ((first, one), (second, two), (copied, one)):
            key_sets.add(tx, key_sets.authenticate(factory.authenticator, key_set, meter))
    [problem] = problems(store)
    assert problem.row == f"{two.title}/0/1/1"
    assert first.key(KeyRole.GUEK).identity.hex() in problem.text


def test_duplicates_are_found_in_several_passes_too(
    store: Store, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "KEYS_AT_ONCE", 3)
    test_a_key_that_two_identities_share_is_named(store, factory)


def test_a_check_needs_the_token(full: Store, url: str) -> None:
    full.close()
    with Store.open(url, None, "reader") as listing, listing.read() as tx, pytest.raises(PolicyError):
        next(check.check(tx))


@pytest.mark.parametrize(
    "column", ["epoch", "time", "actor", "action", "subject", "detail", "effect", "previous", "hash"]
)
def test_the_first_altered_audit_record_is_named(store: Store, url: str, column: str) -> None:
    for number in range(5):
        with store.begin("step", str(number), {"n": number}):
            pass
    value = 7 if column == "epoch" else b"\x00" * 32 if column in ("effect", "previous", "hash") else "{}x"
    tamper(url, f"UPDATE audit SET {column} = ? WHERE sequence IN (3, 4)", value)  # noqa: S608 - test's own
    with store.read() as tx:
        [problem] = audit.verify(tx)
    assert (problem.table, problem.row) == ("audit", "3")


def test_a_missing_audit_record_is_named(store: Store, url: str) -> None:
    for number in range(3):
        with store.begin("step", str(number), {}):
            pass
    tamper(url, "DELETE FROM audit WHERE sequence = 2")
    with store.read() as tx:
        assert [str(problem) for problem in audit.verify(tx)] == ["audit 3: record 2 is missing"]


def test_a_checkpoint_shows_a_chain_that_was_cut_short_or_written_anew(store: Store, url: str) -> None:
    for number in range(3):
        with store.begin("step", str(number), {}):
            pass
    with store.read() as tx:
        content = audit.checkpoint_content(tx)
        assert list(audit.matches_checkpoint(tx, content)) == []
        [*_, last] = audit.log(tx)
    assert content == (
        b'{"epoch":1,"hash":"' + last.hash.hex().encode() + b'","sequence":3,"time":"2026-03-01T12:00:00.000000Z"}'
    )
    tamper(url, "DELETE FROM audit WHERE sequence = 3")
    with store.read() as tx:
        assert [str(problem) for problem in audit.verify(tx)] == ["audit 2: it is not the newest record, which is 3"]
        assert ["cut short" in problem.text for problem in audit.matches_checkpoint(tx, content)] == [True]
    with (
        pytest.raises(IntegrityError, match="ends with record 2, and record 3 was the newest"),
        store.begin("x", "y", {}),
    ):
        pass
    tamper(
        url,
        "INSERT INTO audit SELECT 3, epoch, time, actor, action, subject, detail, effect, previous, hash"
        " FROM audit LIMIT 1",
    )
    with store.read() as tx:
        assert [problem.row for problem in audit.matches_checkpoint(tx, content)] == ["3"]


def test_the_effect_tells_two_changes_apart(store: Store, factory: Factory) -> None:
    for number in (1, 2):
        with store.begin("meter add", "x", {}) as tx:
            meters.add(tx, factory.meter(number))
    with store.begin("nothing", "x", {}):
        pass
    with store.read() as tx:
        assert len({record.effect for record in audit.log(tx)}) == 3
        assert [record.sequence for record in audit.log(tx, after=1, subject="x")] == [2, 3]


def test_members_of_a_group_share_its_keys_and_nobody_else_does(store: Store, factory: Factory) -> None:
    with store.begin("x", "y", {}) as tx:
        for name in ("north", "south"):
            groups.add(tx, groups.Group(name, 0, 102))
        north = group_keys(factory, "north")
        groups.add_keys(tx, 0, north)
        groups.add_keys(tx, 0, group_keys(factory, "south"))
        for number in (1, 2):
            in_group(tx, factory, "north", number, *north.keys)
    assert problems(store) == []
    with store.begin("x", "y", {}) as tx:
        in_group(tx, factory, "south", 3, north.key(KeyRole.GBEK))
        in_group(tx, factory, "", 4, north.key(KeyRole.GAK))
    first = factory.meter(1).title
    assert [str(problem) for problem in problems(store)] == [
        f"key_sets {factory.meter(3).title}/0/1/1: its gbek key is also that of meter {first}",
        f"key_sets {factory.meter(4).title}/0/1/1: its gak key is also that of meter {first}",
    ]


def test_a_meter_that_left_a_group_may_still_have_its_keys(store: Store, factory: Factory) -> None:
    with store.begin("x", "y", {}) as tx:
        groups.add(tx, groups.Group("north", 0, 102))
        keys = group_keys(factory, "north")
        groups.add_keys(tx, 0, keys)
        for number in (1, 2):
            in_group(tx, factory, "north", number, *keys.keys)
        left = factory.meter(2).system_title
        groups.put_member(tx, groups.Member("north", left, 0, 1, groups.MemberState.REMOVED))
        assert groups.own_group_of(tx, left, 0, 1) == ""
    assert problems(store) == []


def test_a_key_of_two_groups_is_named(store: Store, factory: Factory) -> None:
    with store.begin("x", "y", {}) as tx:
        for name in ("north", "south"):
            groups.add(tx, groups.Group(name, 0, 102))
        north = group_keys(factory, "north")
        groups.add_keys(tx, 0, north)
        renamed = tuple(replace(key, identity=bytes(15) + bytes([place])) for place, key in enumerate(north.keys))
        groups.add_keys(tx, 0, replace(north, group="south", keys=renamed))
    assert sorted(str(problem) for problem in problems(store)) == [
        "group_keys south 1: its gak key is also a key of group north",
        "group_keys south 1: its gbek key is also a key of group north",
    ]
