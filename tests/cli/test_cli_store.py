"""A store that somebody wrote into is found out: where it is used with exit code 6, and by `store check` by name."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from hsmkm.errors import IntegrityError
from hsmkm.store import counters
from tests.command import failed, results
from tests.forge import certified, forge
from tests.realm import Realm, title_of

IDENTITY, CLIENT = bytes(range(16)), b"UTI00004"


def tamper(realm: Realm, name: str, *statements: str) -> None:
    """Change a store behind the program's back."""
    with closing(sqlite3.connect(realm.home(name) / "store.db")) as connection, connection:
        for statement in statements:
            assert connection.execute(statement).rowcount >= 1, statement


def problems(realm: Realm, name: str) -> set[tuple[str, str]]:
    """Let `store check` name what does not fit."""
    done = realm.cli(name, "store", "check")
    assert done.returncode == 6, done.stderr
    return {(row["table"], row["row"]) for row in results(done)}


def exit_6(realm: Realm, name: str, *arguments: str) -> str:
    return failed(realm.cli(name, *arguments), 6)[0]


def test_a_swapped_certificate_of_a_party_exports_no_key(realm: Realm) -> None:
    realm.rows("factory", "meter", "provision", str(realm.order(1)), "--line", "line")
    query = "(SELECT certificates FROM parties WHERE name = 'line')"
    tamper(realm, "factory", f"UPDATE parties SET certificates = {query} WHERE name = 'utility'")  # noqa: S608 - a test
    packages = sorted(realm.home("factory").glob("packages/*"))
    assert "parties utility" in exit_6(realm, "factory", "package", "export", "1", "--to", "utility")
    assert sorted(realm.home("factory").glob("packages/*")) == packages
    assert problems(realm, "factory") == {("parties", "utility")}


def test_another_certificate_in_place_of_a_pinned_one_exports_no_key(realm: Realm) -> None:
    realm.rows("factory", "meter", "provision", str(realm.order(1)), "--line", "line")
    other = "(SELECT der FROM certificates WHERE owner = 'line' AND profile = 'key-agreement')"
    where = "owner = 'utility' AND profile = 'key-agreement'"
    tamper(realm, "factory", f"UPDATE certificates SET der = {other} WHERE {where}")  # noqa: S608 - a test
    exit_6(realm, "factory", "package", "export", "1", "--to", "utility")
    assert {table for table, _ in problems(realm, "factory")} == {"certificates"}


def test_a_raised_role_of_a_party_takes_no_package(realm: Realm) -> None:
    tamper(realm, "utility", "UPDATE parties SET role = 'factory', flags = 'MMM' WHERE name = 'concentrator'")
    with realm.open("concentrator") as party:
        data = forge(party, certified(realm, "utility"), title_of(1)).data
    path = realm.folder / "package.p7m"
    path.write_bytes(data)
    assert "parties concentrator" in exit_6(realm, "utility", "package", "import", str(path))
    assert problems(realm, "utility") == {("parties", "concentrator")}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE key_sets SET keys = (SELECT keys FROM key_sets WHERE system_title = {two}) WHERE system_title = {one}",
        "UPDATE key_sets SET mac = zeroblob(32) WHERE system_title = {one}",
        "UPDATE meters SET serial = '2' WHERE system_title = {one}",
    ],
    ids=["keys of another meter", "mac", "serial number"],
)
def test_an_altered_key_set_is_not_exported(realm: Realm, change: str) -> None:
    realm.rows("factory", "meter", "provision", str(realm.order(1, 2)), "--line", "line")
    one, two = (f"x'{title_of(serial)}'" for serial in (1, 2))
    tamper(realm, "factory", change.format(one=one, two=two))
    said = exit_6(realm, "factory", "package", "export", title_of(1), "--to", "utility")
    assert title_of(1) in said or said.startswith("key_sets: it has rows of an earlier time")
    assert any(title_of(1) in row for _, row in problems(realm, "factory"))


def test_a_counter_that_was_lowered_hands_out_nothing(realm: Realm) -> None:
    with realm.open("utility") as party, party.store.count() as tx:
        assert counters.reserve(tx, IDENTITY, CLIENT, 100, None) == range(1, 101)
    tamper(realm, "utility", "UPDATE counters SET next = 1")
    with realm.open("utility") as party, party.store.count() as tx, pytest.raises(IntegrityError):
        counters.reserve(tx, IDENTITY, CLIENT, 1, None)
    assert {table for table, _ in problems(realm, "utility")} == {"counters"}


def test_an_anchor_that_was_never_placed_is_not_trusted(realm: Realm) -> None:
    anchors = realm.home("utility") / "trust" / "anchors.pem"
    stranger = realm.folder / "certificates" / "line" / "tls.pem"
    anchors.write_bytes(anchors.read_bytes() + stranger.read_bytes())
    path = realm.folder / "package.p7m"
    with realm.open("factory") as party:
        path.write_bytes(forge(party, certified(realm, "utility"), title_of(1)).data)
    assert "never placed" in exit_6(realm, "utility", "package", "import", str(path))


@pytest.mark.slow
def test_a_store_that_is_gone_or_is_none_says_so(realm: Realm) -> None:
    path = realm.home("utility") / "store.db"
    for rest in realm.home("utility").glob("store.db-*"):
        rest.unlink()
    path.write_text("no database, and long enough to be looked at as one" * 100)
    for arguments in (("store", "check"), ("meter", "list")):
        failed(realm.cli("utility", *arguments), 1)
    path.unlink()
    for arguments in (("store", "check"), ("meter", "list")):
        assert "there is no store at" in failed(realm.cli("utility", *arguments), 1)[0]
    assert not path.exists()


def test_the_audit_log_lists_and_verifies(realm: Realm) -> None:
    rows = realm.rows("utility", "audit", "log", "--limit", "3", "--after", "1")
    assert [row["sequence"] for row in rows] == [2, 3, 4]
    assert all(row["actor"] == "tester" for row in rows)
    subjects = realm.rows("utility", "audit", "log", "--subject", "concentrator")
    assert [row["action"] for row in subjects] == ["party-add"]
    assert realm.rows("utility", "audit", "verify") == []
    every = realm.rows("utility", "audit", "log", "--limit", "0")
    assert [row["sequence"] for row in every] == list(range(1, len(every) + 1))
    assert rows == every[1:4]


def test_a_rewritten_audit_record_is_named(realm: Realm) -> None:
    tamper(realm, "utility", "UPDATE audit SET actor = 'nobody' WHERE sequence = 3")
    done = realm.cli("utility", "audit", "verify")
    assert done.returncode == 6
    assert results(done) == [{"table": "audit", "row": "3", "problem": "it does not fit its hash"}]


def test_a_record_taken_out_is_named(realm: Realm) -> None:
    tamper(realm, "utility", "DELETE FROM audit WHERE sequence = 3")
    done = realm.cli("utility", "audit", "verify")
    assert done.returncode == 6
    assert results(done)[0]["row"] == "4"


@pytest.mark.slow
def test_a_chain_cut_short_is_found_by_the_state_of_the_store_and_by_a_checkpoint(realm: Realm) -> None:
    kept = realm.folder / "checkpoint"
    (row,) = realm.rows("utility", "audit", "checkpoint", "--out", str(kept))
    assert realm.rows("utility", "audit", "verify", "--checkpoint", str(kept)) == []
    tamper(realm, "utility", f"DELETE FROM audit WHERE sequence >= {row['sequence']}")  # noqa: S608 - a test
    done = realm.cli("utility", "audit", "verify", "--checkpoint", str(kept))
    assert done.returncode == 6
    assert [(problem["row"], problem["problem"]) for problem in results(done)] == [
        (str(row["sequence"] - 1), f"it is not the newest record, which is {row['sequence']}"),
        (str(row["sequence"]), "the record of a checkpoint is missing: the chain was cut short"),
    ]
    assert "was the newest" in exit_6(realm, "utility", "audit", "checkpoint", "--out", str(kept))


@pytest.mark.slow
def test_a_checkpoint_of_another_party_or_an_altered_one_proves_nothing(realm: Realm) -> None:
    kept = realm.folder / "checkpoint"
    realm.rows("concentrator", "audit", "checkpoint", "--out", str(kept))
    error, _ = failed(realm.cli("utility", "audit", "verify", "--checkpoint", str(kept)), 1)
    assert "was signed by another party" in error
    data = kept.read_bytes()
    place = data.index(b'"sequence":') + 11
    kept.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    exit_6(realm, "utility", "audit", "verify", "--checkpoint", str(kept))
    with realm.open("utility") as party:
        kept.write_bytes(forge(party, certified(realm, "concentrator"), title_of(1)).data)
    failed(realm.cli("utility", "audit", "verify", "--checkpoint", str(kept)), 1)
