"""Rotation of the storage and integrity keys: every key set opens to the same keys, whatever happens on the way."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from hsmkm.errors import IntegrityError, RefusedError, TokenUnreachableError
from hsmkm.steps import attest, rotate
from hsmkm.steps.party import Party, open_party
from hsmkm.store import audit, check, groups, key_set_rows, key_sets, meters, models, schema
from hsmkm.store.groups import Group, GroupKeys, GroupKeyState
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState, StoredKey
from hsmkm.store.meter import Meter
from hsmkm.store.store import Store
from hsmkm.token.cryptoki import Session
from hsmkm.token.keyring import KINDS
from hsmkm.token.keys import KeyHandle
from hsmkm.token.types import KeyRole, MeterRole, Sealed, Use
from hsmkm.token.vault import Vault
from hsmkm.token.workers import Worker
from tests.field import wait_until
from tests.realm import ACTOR, Realm, copy_realm

LATE = b"MMM\x00\x00\x00\x00\x63"
TABLES = ("models", "group_keys", "key_sets")


@pytest.fixture
def delivered(delivered_template: Realm, tmp_path: Path) -> Realm:
    """A factory with meters, initial keys, counters, packages and a group."""
    realm = copy_realm(delivered_template, tmp_path / "realm")
    with realm.open("factory") as party, party.store.begin("test-group", "g", {}) as tx:
        groups.add(tx, Group("g", 0, 102))
        groups.add_keys(
            tx, 0, GroupKeys("g", 1, 1, tuple(born(party, role) for role in groups.SHARED_ROLES), GroupKeyState.NEXT)
        )
    return realm


def born(party: Party, role: KeyRole) -> StoredKey:
    with party.vault.generate(role, 0) as key:
        return StoredKey(role, party.vault.random(16), party.vault.seal(key).wrapped)


def lying(party: Party) -> dict[str, list[tuple[int, int, tuple[StoredKey, ...]]]]:
    """Every place with sealed keys: (storage key, suite, keys)."""
    with party.store.read() as tx:
        suites = {name: groups.require(tx, name).suite for name in ("g",)}
        refs = [KeySetRef(*row.values()) for row in tx.all(select(*(schema.key_sets.c[n] for n in key_set_rows.KEY)))]
        sets = [key_sets.get(tx, ref) for ref in sorted(refs)]
        return {
            "models": [(item.storage_key, item.suite, item.keys) for item in models.every_keys(tx)],
            "group_keys": [(i.storage_key, suites[i.group], i.keys) for i in groups.every_generation(tx)],
            "key_sets": [(item.storage_key, item.suite, item.keys) for item in sets],
        }


def told(party: Party, probe: Sealed) -> dict[str, list[list[tuple[str, bytes, bytes]]]]:
    """Open every key and wrap it under one and the same key, kept in a box: equal octets are equal keys."""
    vault = party.vault
    with vault.open(KeyRole.MASTER, probe, 2, Use.IN_USE) as box:
        return {
            place: [
                [
                    (key.role.value, key.identity, _boxed(vault, box, Sealed(number, key.wrapped), key.role, suite))
                    for key in keys
                ]
                for number, suite, keys in items
            ]
            for place, items in lying(party).items()
        }


def _boxed(vault: Vault, box: KeyHandle, sealed: Sealed, role: MeterRole, suite: int) -> bytes:
    with vault.open(role, sealed, suite, Use.TRANSPORT) as key:
        return vault.wrap(box, key)


def probe_of(party: Party) -> Sealed:
    with party.vault.generate(KeyRole.MASTER, 2) as key:
        return party.vault.seal(key)


def under(party: Party) -> set[int]:
    """The numbers of the keys that anything in the store is under."""
    with party.store.read() as tx:
        columns = [
            table.c[name]
            for table in schema.metadata.sorted_tables
            for name in ("mac_key", "storage_key")
            if name in table.c
        ]
        return {number for column in columns for (number,) in tx.connection.execute(select(column)) if number}


def test_everything_comes_under_the_next_keys_and_opens_to_the_same(delivered: Realm) -> None:
    with delivered.open("factory") as party:
        probe = probe_of(party)
        before, wrapped = told(party, probe), lying(party)
        assert all(before[table] for table in TABLES)
        done = rotate.rotate(party)
        assert {item.number for item in done} == {2}
        assert under(party) == {2}
        assert told(party, probe) == before
        octets = [{key.wrapped for item in items for key in item[2]} for items in (*wrapped.values(),)]
        now = [{key.wrapped for item in items for key in item[2]} for items in (*lying(party).values(),)]
        assert all(old.isdisjoint(new) for old, new in zip(octets, now, strict=True))
        assert attest.verify_audit(party, ()) == []
        with party.store.read() as tx:
            batches = [item for item in audit.log(tx, limit=1000) if item.action == rotate.BATCH]
        assert {item.subject for item in batches} >= set(TABLES)
        assert sum(int(str(item.detail["rows"])) for item in batches) == sum(item.rows for item in done)


def die_at(party: Party, what: str, turn: int) -> None:
    """Rotate in batches of seven rows, and be killed at the Nth call of a kind."""
    rotate.BATCH_ROWS = 7
    left = [turn]
    owners: dict[str, tuple[type, str]] = {
        "made": (Session, "generate_key"),
        "wrapped": (Session, "wrap"),
        "begun": (Store, "begin"),
    }
    owner, name = owners[what]
    real = getattr(owner, name)

    def dying(*args: object, **options: object) -> object:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(owner, name, dying)
    rotate.rotate(party)


MOMENTS = [
    ("begun", 1),
    ("made", 1),
    ("made", 2),
    ("made", 2),
    ("begun", 1),
    ("wrapped", 1),
    ("wrapped", 30),
    ("wrapped", 17),
    ("begun", 2),
    ("begun", 4),
]


@pytest.mark.slow
def test_killed_at_ten_moments_it_goes_on_and_every_key_set_opens(delivered: Realm) -> None:
    home = delivered.home("factory")
    with delivered.open("factory") as party:
        probe = probe_of(party)
        before = told(party, probe)
    seen = set()
    for what, turn in MOMENTS:
        with pytest.raises(TokenUnreachableError), Worker(open_party, home, ACTOR) as worker:
            worker.call(die_at, what, turn)
        with delivered.open("factory") as party:
            assert attest.verify_audit(party, ()) == []
            assert told(party, probe) == before
            seen.add(frozenset(under(party)))
    assert frozenset({1, 2}) in seen
    with delivered.open("factory") as party:
        assert {item.number for item in rotate.rotate(party)} == {2}
        assert under(party) == {2}
        assert told(party, probe) == before


def test_an_altered_row_ends_the_rotation_and_is_not_blessed(delivered: Realm) -> None:
    with delivered.open("factory") as party:
        with party.store._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE counters SET next = 7")
        with pytest.raises(IntegrityError, match=r"counters .* does not fit its mac"):
            rotate.rotate(party)
        assert any(problem.table == "counters" for problem in attest.check_store(party))


def test_older_keys_are_retired_only_when_nothing_is_under_them(delivered: Realm) -> None:
    with delivered.open("factory") as party:
        with pytest.raises(RefusedError, match="no older keys"):
            rotate.retire(party)
        rotate.rotate(party)
        assert sorted(rotate.retire(party)) == sorted(f"{kind}:1" for kind in KINDS)
        assert attest.verify_audit(party, ()) == []
    with delivered.open("factory") as party:
        assert attest.verify_audit(party, ()) == []
        assert party.vault.storage_key == 2


def test_an_unfinished_rotation_retires_nothing(delivered: Realm) -> None:
    with delivered.open("factory") as party:
        with party.store.begin(rotate.BEGUN, "factory", {"number": 2}):
            pass
        party.vault.keyring.create_up_to(2)
        with pytest.raises(RefusedError, match="not finished"):
            rotate.retire(party)


def seal_and_store_later(party: Party, sealed: Path, rotated: Path) -> int:
    """Make a key set, and store it when others have rotated."""
    meter = Meter(LATE, "99", "virtual", 0)
    keys = tuple(born(party, role) for role in KeyRole)
    sealed.touch()
    wait_until(rotated.exists)
    with party.store.begin("test-later", "99", {}) as tx:
        meters.add(tx, meter)
        assert {item.storage_key for item in models.every_keys(tx)} == {2}
        made = KeySet(KeySetRef(meter.system_title, 0, 1, 1), 0, party.vault.storage_key, KeyState.PRE_ACTIVE, keys)
        key_sets.add(tx, key_sets.authenticate(party.vault, made, meter))
    return party.vault.storage_key


def touched(party: Party) -> int:
    with party.store.begin("test-touch", "all", {}) as tx:
        found = meters.listing(tx)[0]
        meters.update(tx, replace(found, address="127.0.0.1:1"))
        return int(
            tx.all(select(schema.meters.c.mac_key).where(schema.meters.c.address == "127.0.0.1:1"))[0]["mac_key"]
        )


@pytest.mark.slow
def test_a_process_that_began_earlier_ends_its_call_under_the_old_keys_and_then_turns(
    delivered: Realm, tmp_path: Path
) -> None:
    home = delivered.home("factory")
    with Worker(open_party, home, ACTOR) as service, Worker(open_party, home, ACTOR) as operator:
        assert service.call(touched) == 1
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(service.call, seal_and_store_later, tmp_path / "sealed", tmp_path / "rotated")
            wait_until((tmp_path / "sealed").exists)
            assert operator.call(rotate.rotate)[0].number == 2
            (tmp_path / "rotated").touch()
            assert later.result() == 1
        assert service.call(touched) == 2
        with pytest.raises(RefusedError, match="in use"):
            operator.call(rotate.retire)
        assert {item.number for item in operator.call(rotate.rotate)} == {2}
        assert len(operator.call(rotate.retire)) == 3
        assert service.call(touched) == 2
        assert service.call(attest.check_store) == []
        assert operator.call(opens, 99)


@pytest.mark.slow
def test_what_was_sealed_under_keys_that_were_retired_meanwhile_is_not_stored(delivered: Realm, tmp_path: Path) -> None:
    home = delivered.home("factory")
    with Worker(open_party, home, ACTOR) as service, Worker(open_party, home, ACTOR) as operator:
        assert service.call(touched) == 1
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(service.call, seal_and_store_later, tmp_path / "sealed", tmp_path / "retired")
            wait_until((tmp_path / "sealed").exists)
            operator.call(rotate.rotate)
            assert len(operator.call(rotate.retire)) == 3
            (tmp_path / "retired").touch()
            with pytest.raises(TokenUnreachableError, match="retired"):
                later.result()
        assert operator.call(titles_under) == {2}
        assert operator.call(attest.verify_audit, ()) == []
    with Worker(open_party, home, ACTOR) as again:
        assert again.call(touched) == 2


def titles_under(party: Party) -> set[int]:
    """The storage keys of all key sets; the meter whose keys came too late has none."""
    with party.store.read() as tx:
        assert meters.get(tx, LATE) is None
    return under(party)


def opens(party: Party, serial: int) -> bool:
    with party.store.read() as tx:
        meter = meters.find(tx, str(serial))
        ((key_set, _),) = key_sets.for_meter(tx, meter.system_title)
    for key in key_set.keys:
        party.vault.open(key.role, Sealed(key_set.storage_key, key.wrapped), 0, Use.TRANSPORT).destroy()
    return True


def test_the_command_rotates_and_retires(delivered: Realm) -> None:
    rows = delivered.rows("factory", "token", "rotate")
    assert {row["keys"] for row in rows} == {2}
    assert {row["table"] for row in rows} >= {*TABLES, *(item.table.name for item in check.AUTHENTICATED)}
    gone = delivered.rows("factory", "token", "rotate", "--retire")
    assert [row["key"] for row in gone] == ["gak-storage:1", "integrity:1", "storage:1"]
    assert delivered.rows("factory", "store", "check") == []
