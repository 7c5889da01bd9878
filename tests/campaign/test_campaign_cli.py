"""`hsmkm campaign` and `hsmkm worker run` as their users run them."""

from __future__ import annotations

import json
from pathlib import Path

from hsmkm.store import campaigns
from tests.campaign.conftest import DONE, NAME, standing, titles_in
from tests.command import Done, failed, results
from tests.field import key_states
from tests.street import ONE, OTHER, Street


def test_a_campaign_is_made_started_and_reported(street: Street, chosen: Path) -> None:
    realm = street.realm
    made = results(realm.cli("factory", "campaign", "create", NAME, "--meters", str(chosen)))
    assert made == [made[0] | {"campaign": NAME, "state": "created", "meters": 2, "left": 2, "done": 0}]
    done = realm.cli("factory", "campaign", "start", NAME, "--workers", "2", "--threads", "2", "--line-every", "1")
    (row,) = results(done)
    assert (row["state"], row["done"], row["left"]) == ("finished", 2, 0)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[-1]["settled"] == 2
    assert lines[-1]["of"] == 2
    assert results(realm.cli("factory", "campaign", "report", NAME)) == []
    assert results(realm.cli("factory", "campaign", "list")) == [row]
    assert standing(street.party)[1] == {DONE: 2}
    assert key_states(street.party, 2) == [(1, "deactivated"), (2, "active")]


def test_what_is_not_done_is_reported_with_the_reason(street: Street, chosen: Path) -> None:
    realm = street.realm
    street.moves(OTHER, "127.0.0.1:1")
    arguments = ("--meters", str(chosen), "--attempts", "1", "--by", "key-transfer", "--keys", "guek,gak")
    results(realm.cli("factory", "campaign", "create", NAME, *arguments))
    error, _ = failed_with_lines(realm.cli("factory", "campaign", "start", NAME, "--threads", "1"), 7)
    assert error == f"campaign {NAME} is finished; 1 meters are not done"
    (lost,) = results(realm.cli("factory", "campaign", "report", NAME))
    assert (lost["meter"], lost["state"], lost["attempts"]) == (OTHER, "gave-up", 1)
    assert "127.0.0.1:1" in lost["outcome"]


def test_all_that_is_wrong_with_the_meters_is_said_at_once(street: Street, tmp_path: Path) -> None:
    street.rests(OTHER)
    file = titles_in(tmp_path / "meters.txt", ONE, "# a comment", OTHER, "4D4D4D00000000FF", "meter 7", ONE)
    error, faults = failed(street.realm.cli("factory", "campaign", "create", NAME, "--meters", str(file)), 1)
    assert error == f"campaign {NAME} was not made: 4 meters cannot be worked on"
    assert faults == [
        f"meters.txt:3: meter {OTHER}: it is suspended",
        "meters.txt:4: there is no meter 4D4D4D00000000FF",
        "meters.txt:5: 'meter 7' is no system title of 16 hex digits",
        f"meters.txt:6: meter {ONE} stands there twice",
    ]
    with street.party.store.read() as tx:
        assert campaigns.listing(tx) == []


def failed_with_lines(done: Done, code: int) -> tuple[str, list[str]]:
    """Check the same of a command that told how far it was."""
    done.stderr = "".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith("{"))
    return failed(done, code)
