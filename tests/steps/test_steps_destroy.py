"""The end of keys: their octets leave every file of the store, and a signed record stays that openssl verifies too."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from hsmkm.errors import PolicyError, RefusedError
from hsmkm.steps import approve, attest
from hsmkm.steps import destroy as destroying
from hsmkm.steps.communicate import conversation, find_meter
from hsmkm.steps.destroy import destroy, destroy_due
from hsmkm.steps.life import compromise
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.provision import provision
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.store import key_sets, key_states, urgent
from hsmkm.store.key_set import KeyState
from tests.database import is_file, octets_of
from tests.field import Field, energy
from tests.proofs.openssl import content_of
from tests.realm import Realm
from tests.street import ONE, OTHER, Street, open_street


@pytest.fixture
def street(field: Field) -> Iterator[Street]:
    with open_street(field.realm) as found:
        yield found


def wrapped(party: Party, title: str) -> list[bytes]:
    """Every wrapped key of a meter as it lies in the store."""
    with party.store.read() as tx:
        every = key_sets.for_meter(tx, find_meter(party, title).system_title)
    return [key.wrapped for key_set, _ in every for key in key_set.keys]


def in_files(party: Party, octets: list[bytes]) -> int:
    """How many of these are anywhere in the files of the store, deleted or not."""
    data = octets_of(party.settings.store_url)
    return sum(one in data for one in octets)


def record_of(party: Party) -> Path:
    (path,) = (party.home / "records").glob("*.p7m")
    return path


def test_destroyed_keys_are_in_no_file_of_the_store_and_a_signed_record_says_so(street: Street, field: Field) -> None:
    party = street.party
    renew(party, [ONE], GLOBAL_KEYS)
    gone, kept = wrapped(party, ONE), wrapped(party, OTHER)
    assert in_files(party, gone) == len(gone) == 8
    (outcome,) = destroy(party, [ONE])
    assert (outcome.state, outcome.generation, outcome.error) == ("destroyed", 2, None)
    assert in_files(party, gone) == 0
    assert in_files(party, kept) == len(kept)

    with party.store.read() as tx:
        title = find_meter(party, ONE).system_title
        assert key_sets.for_meter(tx, title) == []
        assert [ref.generation for ref in key_states.destroyed(tx, title)] == [1, 2]
        assert key_sets.next_generation(tx, title, 0, 1) == 3
    with pytest.raises(RefusedError, match="is destroyed: it is not spoken with"):
        energy(party, 1)
    said = json.loads(content_of(record_of(party), field.realm.folder / "pki" / "root.pem"))
    assert [(item["meter"], item["generation"], sorted(item["keys"])) for item in said["key_sets"]] == [
        (ONE, 1, ["gak", "gbek", "guek", "master"]),
        (ONE, 2, ["gak", "gbek", "guek", "master"]),
    ]
    assert (said["party"], said["actor"]) == ("factory", "tester")
    assert not any(octets.hex() in json.dumps(said) for octets in gone)
    assert attest.verify_audit(party, ()) == []


def test_without_the_sweep_deleted_octets_would_be_found(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the search above can see: the log of the database has the pages of before."""
    party = street.party
    gone = wrapped(party, ONE)
    monkeypatch.setattr(type(party.store), "sweep", lambda _store: False)
    (outcome,) = destroy(party, [ONE])
    assert outcome.error is not None
    assert "may still lie in deleted parts" in outcome.error.message
    assert in_files(party, gone) > 0
    monkeypatch.undo()
    destroying.sweep(party)
    assert in_files(party, gone) == 0


def test_a_record_that_is_missing_altered_or_slipped_in_is_named(street: Street) -> None:
    party = street.party
    destroy(party, [ONE])
    path = record_of(party)
    data = path.read_bytes()
    stray = path.with_name("00000000-0000-4000-8000-000000000000.p7m")
    stray.write_bytes(data)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    found = {(item.row, item.text) for item in attest.verify_audit(party, ())}
    assert found == {
        (path.stem, "it is not the record that the audit log speaks of"),
        (stray.stem, "the audit log does not speak of it"),
    }
    stray.unlink()
    path.unlink()
    ((problem),) = attest.verify_audit(party, ())
    assert (problem.table, problem.text) == ("records", "the signed record of a destruction is missing")


def test_what_a_crash_left_of_a_destruction_is_finished_or_dropped(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    party = street.party

    def killed(_store: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(party.store), "sweep", killed)
        with pytest.raises(KeyboardInterrupt):
            destroy(party, [ONE])
    path = record_of(party)
    path.rename(path.with_name(f"{path.name}.partial"))
    path.with_name("00000000-0000-4000-8000-000000000000.p7m.partial").write_bytes(b"of no destruction")
    assert attest.verify_audit(party, ()) == []
    destroy(party, [OTHER])
    assert len(list((party.home / "records").iterdir())) == 2
    assert path.is_file()
    assert attest.verify_audit(party, ()) == []


def test_nothing_is_destroyed_while_somebody_speaks_with_the_meter(street: Street) -> None:
    with conversation(street.party, find_meter(street.party, ONE)), pytest.raises(RefusedError, match="is held by"):
        destroy(street.party, [OTHER, ONE])
    assert len(wrapped(street.party, OTHER)) == 4
    assert list((street.party.home / "records").iterdir()) == []
    destroy(street.party, [ONE])
    with pytest.raises(RefusedError, match="none was"):
        destroy(street.party, [ONE, OTHER])
    assert len(wrapped(street.party, OTHER)) == 4


def test_a_compromised_meter_that_is_destroyed_waits_for_no_renewal(street: Street) -> None:
    compromise(street.party, [ONE], "burnt")
    destroy(street.party, [ONE])
    with street.party.store.read() as tx:
        assert urgent.waiting(tx) == []
    (outcome,) = compromise(street.party, [ONE], "again")
    assert "is destroyed" in outcome.detail


def test_the_factorys_copies_go_when_their_day_has_come_and_their_receipt_is_there(street: Street) -> None:
    """`destroy_after` is no more than a date: without the recipient's receipt nothing is destroyed for it."""
    party = street.party
    assert destroy_due(party) == []
    past = utc_now() - timedelta(days=1)
    with party.store.begin("test", "x", {}) as tx:
        for title in (ONE, OTHER):
            ((key_set, _),) = key_sets.for_meter(tx, find_meter(party, title).system_title)
            key_sets.set_destroy_after(tx, key_set.ref, past)
    renew(party, [OTHER], GLOBAL_KEYS)
    with party.store.begin("test", "x", {}) as tx:
        newest, _ = key_sets.for_meter(tx, find_meter(party, OTHER).system_title)[-1]
        key_sets.set_destroy_after(tx, newest.ref, past)
    gone = wrapped(party, ONE)
    outcomes = destroy_due(party)
    assert {(item.system_title, item.generation) for item in outcomes} == {(ONE, 1), (OTHER, 1)}
    assert in_files(party, gone) == 0
    with party.store.read() as tx:
        left = key_sets.for_meter(tx, find_meter(party, OTHER).system_title)
    assert [(key_set.ref.generation, state) for key_set, state in left] == [(2, KeyState.ACTIVE)]
    assert attest.verify_audit(party, ()) == []


def test_where_the_policy_lists_it_a_second_officer_must_sign(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = realm.home("factory") / "hsmkm.toml"
    settings.write_text(settings.read_text().replace("four_eyes = []", 'four_eyes = ["meter-destroy"]'))
    with realm.open("factory") as party:
        provision(party, realm.order(1), "line")
        with pytest.raises(PolicyError, match="needs the approval of a second officer") as caught:
            destroy(party, [ONE])
        assert f'meter-destroy {ONE} --request \'{{"meters":["{ONE}"]}}\'' in caught.value.hint
        assert len(wrapped(party, ONE)) == 4
        assert list((party.home / "records").iterdir()) == []
        monkeypatch.setattr(approve, "LISTED", 0)
        with pytest.raises(PolicyError, match="needs the approval of a second officer") as caught:
            destroy(party, [ONE])
        assert '{"meters":{"count":1,"sha256":' in caught.value.hint


def test_the_search_reads_the_log_of_the_database(street: Street) -> None:
    """Were the log not read, the proof above would be of half the files."""
    if not is_file(street.party.settings.store_url):
        pytest.skip("a log of its own is SQLite's")
    names = {path.name for path in street.party.home.glob("store.db*")}
    assert "store.db-wal" in names
    with sqlite3.connect(street.party.home / "store.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
