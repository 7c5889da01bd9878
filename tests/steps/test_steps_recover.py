"""`hsmkm store recover` on a party with its token: what it asks for, and that the next counter was never used."""

from __future__ import annotations

from pathlib import Path

from hsmkm.steps.setup import set_in_file
from hsmkm.store import counters
from tests.command import failed
from tests.database import alter, keep
from tests.realm import Realm

IDENTITY, CLIENT = bytes(range(16)), b"UTI00004"


def reserve(realm: Realm) -> range:
    with realm.open("utility") as party, party.store.count() as tx:
        return counters.reserve(tx, IDENTITY, CLIENT, 16, None)


def test_a_restored_store_is_recovered_once_and_counts_on_above_what_was_lost(realm: Realm, tmp_path: Path) -> None:
    reserve(realm)
    put_back = keep(realm.url("utility"), tmp_path / "backup.db")
    lost = [reserve(realm) for _ in range(3)]
    put_back()
    error, _ = failed(realm.cli("utility", "audit", "checkpoint", "--out", str(tmp_path / "checkpoint")), 6)
    assert "restored or cut short" in error
    (row,) = realm.rows("utility", "store", "recover")
    assert row == {"lost_changes": 3, "counter_jump": 48, "counters_raised": 1, "urgent_renewals": 0}
    assert realm.rows("utility", "store", "check") == []
    assert realm.rows("utility", "audit", "verify") == []
    assert reserve(realm).start == lost[-1].stop
    failed(realm.cli("utility", "store", "recover"), 1)


def test_a_database_that_is_not_sound_in_itself_is_not_recovered(realm: Realm, tmp_path: Path) -> None:
    put_back = keep(realm.url("utility"), tmp_path / "backup.db")
    reserve(realm)
    put_back()
    alter(realm.url("utility"), "UPDATE parties SET role = 'utility' WHERE name = 'factory'")
    error, _ = failed(realm.cli("utility", "store", "recover"), 6)
    assert "not sound in itself" in error
    assert "parties factory" in error


def test_the_anchor_moves_to_a_file_and_a_recovery_that_the_policy_lists_needs_a_second_officer(
    realm: Realm, tmp_path: Path
) -> None:
    home = realm.home("utility")
    set_in_file(home / "hsmkm.toml", "store", "anchor", f"file:{tmp_path / 'elsewhere' / 'anchor'}")
    settings = home / "hsmkm.toml"
    settings.write_text(settings.read_text().replace("four_eyes = []", 'four_eyes = ["store-recover"]'))
    error, _ = failed(realm.cli("utility", "audit", "checkpoint", "--out", str(tmp_path / "checkpoint")), 6)
    assert "anchor is gone" in error
    error, _ = failed(realm.cli("utility", "store", "recover"), 5)
    assert "needs the approval of a second officer" in error
    settings.write_text(settings.read_text().replace('four_eyes = ["store-recover"]', "four_eyes = []"))
    (row,) = realm.rows("utility", "store", "recover")
    assert (row["lost_changes"], row["counter_jump"]) == ("unknown", 1_000_000)
    assert (tmp_path / "elsewhere" / "anchor").is_file()
    reserve(realm)
