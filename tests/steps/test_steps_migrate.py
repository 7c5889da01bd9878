"""A fleet moves to another token, of another make, and back: every key opens there, and the old home is silent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from hsmkm.errors import IntegrityError, PolicyError, RefusedError
from hsmkm.packages.archive import open_archive
from hsmkm.steps import attest
from hsmkm.steps.migrate import migrate
from hsmkm.steps.party import Party
from hsmkm.steps.setup import make_token, write_home
from hsmkm.steps.take_over import take_over
from hsmkm.store import carry, counters, groups, key_sets, meters, renewals, schema, transactions
from hsmkm.store.groups import Group, GroupKeys, GroupKeyState
from hsmkm.store.key_set import StoredKey
from hsmkm.token.keys import KeyHandle
from hsmkm.token.types import KeyRole, MeterRole, Sealed, Use
from tests.command import failed
from tests.realm import ACTOR, TITLES, Realm, certify_home, copy_realm

CLIENT = bytes.fromhex(TITLES["factory"])


@pytest.fixture
def delivered(delivered_template: Realm, tmp_path: Path) -> Realm:
    """A factory with meters, initial keys, counters, packages, and a group."""
    realm = copy_realm(delivered_template, tmp_path / "realm")
    with realm.open("factory") as party, party.store.begin("test-group", "g", {}) as tx:
        groups.add(tx, Group("g", 0, 102))
        made = tuple(_born(party, role) for role in groups.SHARED_ROLES)
        groups.add_keys(tx, 0, GroupKeys("g", 1, 1, made, GroupKeyState.NEXT))
        transactions.reserve(tx, CLIENT, 5)
    return realm


def _born(party: Party, role: KeyRole) -> StoredKey:
    with party.vault.generate(role, 0) as key:
        return StoredKey(role, party.vault.random(16), party.vault.seal(key).wrapped)


def new_home(realm: Realm, name: str, profile: str) -> None:
    """Make another home of the factory, with a token of its own and certificates of the same PKI."""
    settings = write_home(realm.home(name), "factory", "factory", TITLES["factory"], ("MMM",), profile)
    make_token(settings, ACTOR)
    certify_home(realm, name)


def agreement(realm: Realm, name: str) -> Path:
    return realm.home(name) / "certificates" / "key-agreement-p384.pem"


def signing(realm: Realm, name: str) -> Path:
    return realm.home(name) / "certificates" / "package-signing-p384.pem"


def moved(realm: Realm, old: str, new: str, *, standby: bool = False) -> Path:
    path = realm.folder / f"{old}-{new}.archive"
    with realm.open(old) as party:
        migrate(party, agreement(realm, new), path, standby)
    with realm.open(new) as party:
        take_over(party, path, signing(realm, old))
    return path


def told(party: Party) -> dict[str, Any]:
    """What the store says, without MACs, revisions, wrappings and numbers of keys: the same in every home."""
    away = {"mac", "mac_key", "revision", "storage_key", "batch"}
    found: dict[str, Any] = {}
    with party.store.read() as tx:
        for table in carry.tables():
            if table.name in carry.OWN:
                continue
            columns = [column for column in table.c if column.name not in away and column.name != "keys"]
            found[table.name] = sorted(map(repr, tx.connection.execute(select(*columns)).all()))
        found["identities"] = sorted((key.identity, key.role.value, suite) for key, suite, _ in carry.sealed_keys(tx))
    return found


def opened_keys(party: Party, box: bytes) -> dict[tuple[bytes, str], bytes]:
    """Every key of the store wrapped under one and the same key: equal octets are equal keys, whatever the token."""
    found = {}
    with party.vault.import_key(KeyRole.MASTER, 2, bytearray(box)) as carried:
        sealed_box = party.vault.seal(carried)
    with party.vault.open(KeyRole.MASTER, sealed_box, 2, Use.IN_USE) as master, party.store.read() as tx:
        for key, suite, number in carry.sealed_keys(tx):
            found[key.identity, key.role.value] = _under(party, master, key.role, Sealed(number, key.wrapped), suite)
    return found


def _under(party: Party, master: KeyHandle, role: MeterRole, sealed: Sealed, suite: int) -> bytes:
    with party.vault.open(role, sealed, suite, Use.TRANSPORT) as key:
        return party.vault.wrap(master, key)


@pytest.mark.slow
@pytest.mark.usefixtures("nss_installed")
def test_a_factory_moves_from_softhsm_to_nss_and_back(delivered: Realm) -> None:
    box = bytes(range(32))
    new_home(delivered, "factory-nss", "nss")
    new_home(delivered, "factory-again", "softhsm2")
    with delivered.open("factory") as party:
        before, keys = told(party), opened_keys(party, box)
    assert {"counters", "holders", "key_states", "packages", "group_keys"} <= {
        name for name, rows in before.items() if rows
    }
    for old, new in (("factory", "factory-nss"), ("factory-nss", "factory-again")):
        moved(delivered, old, new)
        with delivered.open(new) as party:
            assert told(party) == before
            assert opened_keys(party, box) == keys
            assert attest.verify_audit(party, ()) == []
        with delivered.open(old) as party, pytest.raises(PolicyError, match="this home is retired"):
            _count(party)
    with delivered.open("factory-again") as party:
        assert _count(party) > 0


def _count(party: Party) -> int:
    """Take the next value of a counter, as whoever speaks to a meter does."""
    with party.store.count() as tx:
        row = tx.one(select(schema.counters).order_by(schema.counters.c.identity).limit(1))
        assert row is not None
        return counters.reserve(tx, row["identity"], row["client_title"], 1, None)[0]


def test_a_home_of_the_same_make_goes_on_above_every_counter_and_sequence(delivered: Realm) -> None:
    new_home(delivered, "new", "softhsm2")
    with delivered.open("factory") as party:
        last = _count(party)
        with party.store.begin("test-floors", "as after a recovery", {}) as tx:
            assert tx.before is not None
            tx.before = replace(tx.before, sequence_floor=70, generation_floor=50, counter_offset=1000)
    moved(delivered, "factory", "new")
    with delivered.open("new") as party:
        assert _count(party) == last + 1
        with party.store.read() as tx:
            state = tx.state()
        assert state is not None
        assert (state.sequence_floor, state.generation_floor, state.counter_offset) == (70, 50, 1000)
        with party.store.begin("test", "sequences", {}) as tx:
            assert transactions.reserve(tx, CLIENT, 1).start > 0
    (former,) = (delivered.home("new") / "former").glob("*.db")
    assert former.with_suffix(".p7m").is_file()


def test_a_retired_home_writes_its_archive_again_for_the_same_token_only(delivered: Realm) -> None:
    for name in ("new", "other"):
        new_home(delivered, name, "softhsm2")
    with delivered.open("factory") as party:
        migrate(party, agreement(delivered, "new"), delivered.folder / "one", False)
        migrate(party, agreement(delivered, "new"), delivered.folder / "two", False)
        for standby in (False, True):
            with pytest.raises(RefusedError, match="retired, for another certificate"):
                migrate(party, agreement(delivered, "other"), delivered.folder / "three", standby)
        assert attest.verify_audit(party, ()) == []
    with delivered.open("other") as party, pytest.raises(RefusedError) as raised:
        take_over(party, delivered.folder / "one", signing(delivered, "factory"))
    assert "it was made for another key-agreement certificate than ours" in raised.value.reasons
    with delivered.open("new") as party:
        take_over(party, delivered.folder / "two", signing(delivered, "factory"))
        with pytest.raises(RefusedError, match="in use"):
            take_over(party, delivered.folder / "one", signing(delivered, "factory"))


def test_a_standby_archive_leaves_the_home_at_work_and_is_taken_over_with_higher_counters(delivered: Realm) -> None:
    new_home(delivered, "standby", "softhsm2")
    with delivered.open("factory") as party:
        migrate(party, agreement(delivered, "standby"), delivered.folder / "standby.archive", True)
        used = [_count(party) for _ in range(20)]
    with delivered.open("standby") as party:
        take_over(party, delivered.folder / "standby.archive", signing(delivered, "factory"))
        assert _count(party) > used[-1]
        assert _count(party) > used[0] + party.settings.policy.max_counter_jump
        assert attest.verify_audit(party, ()) == []


def test_a_home_without_a_single_key_moves_too(delivered: Realm) -> None:
    new_home(delivered, "empty", "softhsm2")
    new_home(delivered, "next", "softhsm2")
    moved(delivered, "empty", "next")
    with delivered.open("next") as party:
        assert attest.check_store(party) == []


def test_what_is_in_doubt_keeps_a_home_where_it_is(delivered: Realm) -> None:
    new_home(delivered, "new", "softhsm2")
    with delivered.open("factory") as party:
        with party.store.begin("test-renewal", "one", {}) as tx:
            meter = meters.listing(tx)[0]
            ((found, _),) = key_sets.for_meter(tx, meter.system_title)
            renewals.create(tx, found.ref, found.ref.generation + 1, (KeyRole.GUEK,), "guek")
        with pytest.raises(RefusedError, match="in doubt") as raised:
            migrate(party, agreement(delivered, "new"), delivered.folder / "x", False)
        (reason,) = raised.value.reasons
        assert reason.endswith(f"of meter {meter.title} is prepared")
        assert _count(party)
        assert not (delivered.folder / "x").exists()


def test_an_altered_store_is_not_moved(delivered: Realm) -> None:
    new_home(delivered, "new", "softhsm2")
    with delivered.open("factory") as party:
        with party.store._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE counters SET next = 7")
        with pytest.raises(IntegrityError, match="problem"):
            migrate(party, agreement(delivered, "new"), delivered.folder / "x", True)


def test_an_archive_of_somebody_else_is_not_taken(delivered: Realm) -> None:
    new_home(delivered, "new", "softhsm2")
    with delivered.open("factory") as party:
        migrate(party, agreement(delivered, "new"), delivered.folder / "one", False)
        with pytest.raises(RefusedError, match="may not receive"):
            migrate(party, agreement(delivered, "utility"), delivered.folder / "two", False)
        with pytest.raises(RefusedError, match="this very token"):
            migrate(party, agreement(delivered, "factory"), delivered.folder / "two", False)
    with delivered.open("new") as party:
        with pytest.raises(RefusedError) as raised:
            take_over(party, delivered.folder / "one", signing(delivered, "utility"))
        assert "it is signed by another certificate than the one that was named" in raised.value.reasons
        with party.store.read() as tx:
            assert meters.listing(tx) == []


def test_the_commands_move_a_party(delivered: Realm) -> None:
    new_home(delivered, "new", "softhsm2")
    path = str(delivered.folder / "moving")
    (row,) = delivered.rows("factory", "token", "migrate", path, "--to", str(agreement(delivered, "new")))
    assert (row["party"], row["purpose"]) == ("factory", "migration")
    with open_archive(Path(path)) as opened:
        assert any(one.path.startswith("keys/") for one in opened.manifest.files)
    error, _ = failed(delivered.cli("factory", "token", "rotate"), 5)
    assert error.startswith("this home is retired")
    (row,) = delivered.rows("new", "token", "migrate", path, "--from", str(signing(delivered, "factory")))
    assert delivered.rows("new", "store", "check") == []
    assert len(delivered.rows("new", "meter", "list")) == 12
