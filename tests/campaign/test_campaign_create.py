"""A campaign is looked at before it is made, and once more before it starts."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from hsmkm.campaign import control
from hsmkm.campaign.create import Asked, create
from hsmkm.campaign.selection import parse_query
from hsmkm.errors import InputError, PolicyError, RefusedError
from hsmkm.steps import approve
from hsmkm.steps.party import Party
from hsmkm.store import audit, campaigns, leases, meters
from hsmkm.store.campaign import CampaignState, Standing
from tests.campaign.conftest import DONE, NAME, WAITING, left, made, standing, terms, titles_in, worked
from tests.street import ONE, OTHER, Street

ELSEWHERE = "another-host:1:1"


def faults_of(party: Party, asked: Asked) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        create(party, asked, "test")
    with party.store.read() as tx:
        assert campaigns.listing(tx) == []
    return {fault.source: fault.text for fault in caught.value.faults}


def test_a_query_chooses_among_all_meters(street: Street) -> None:
    other = [f"4D4D4D{number:010X}" for number in range(3, 13)]
    create(street.party, Asked(NAME, terms(), parse_query("model=virtual state=active")), "query")
    assert [item.title for item in left(street.party)] == [ONE, OTHER, *other]
    with street.party.store.read() as tx:
        (record,) = audit.of_action(tx, "campaign-create")
    assert record.detail["meters"] == "query"


def test_a_query_that_chooses_nothing_makes_nothing(street: Street) -> None:
    for text in ("model=other", "suite=2", "concentrator=dc-9", "age>1d"):
        with pytest.raises(InputError, match="no meter was chosen"):
            create(street.party, Asked(NAME, terms(), parse_query(text)), text)


def test_every_meter_that_cannot_be_worked_on_is_named_at_once(street: Street, chosen: Path) -> None:
    party = street.party
    street.rests(ONE)
    with party.store.count() as tx:
        leases.acquire(tx, bytes.fromhex(OTHER), ELSEWHERE, 300, tx.now)
    found = faults_of(party, Asked(NAME, terms(), file=chosen))
    assert set(found) == {chosen.name}
    found = faults_of(party, Asked(NAME, terms(), parse_query("model=virtual")))
    assert found[ONE] == "it is suspended"
    assert found[OTHER] == f"it is held by {ELSEWHERE} now"
    (party.home / "models").mkdir(exist_ok=True)
    (party.home / "models" / "virtual.toml").write_text("nonsense = 1\n")
    assert faults_of(party, Asked(NAME, terms(), parse_query("model=virtual")))[ONE].startswith(
        "its model has no usable settings"
    )


def test_an_association_that_the_model_does_not_have_is_named(street: Street, chosen: Path) -> None:
    found = faults_of(street.party, Asked(NAME, terms(association="moon"), file=chosen))
    assert "association" in found[chosen.name]


def test_what_cannot_be_worked_on_can_be_left_out_and_is_listed(street: Street, chosen: Path) -> None:
    street.rests(OTHER)
    create(street.party, Asked(NAME, terms(), file=chosen, leave_out=True), "file")
    control.start(street.party, NAME)
    worked(street.party)
    worked(street.party)
    assert standing(street.party) == (CampaignState.FINISHED, {DONE: 1, Standing.SKIPPED: 1})
    (skipped,) = left(street.party)
    assert (skipped.title, skipped.outcome) == (OTHER, "it is suspended")


def test_a_meter_that_changed_since_is_named_before_the_start(street: Street, chosen: Path) -> None:
    made(street.party, chosen)
    street.rests(OTHER)
    with pytest.raises(InputError, match="was not started: 1 meters") as caught:
        control.start(street.party, NAME)
    assert [fault.text for fault in caught.value.faults] == ["it is suspended"]
    assert standing(street.party) == (CampaignState.CREATED, {WAITING: 2})


def test_one_that_rests_when_its_turn_comes_is_skipped(street: Street, chosen: Path) -> None:
    made(street.party, chosen)
    control.start(street.party, NAME)
    street.rests(OTHER)
    worked(street.party)
    assert standing(street.party)[1] == {DONE: 1, Standing.SKIPPED: 1}


def test_one_that_is_spoken_with_when_its_turn_comes_waits_and_no_attempt_counts(street: Street, chosen: Path) -> None:
    made(street.party, chosen, attempts=1)
    control.start(street.party, NAME)
    with street.party.store.count() as tx:
        lease = leases.acquire(tx, bytes.fromhex(OTHER), ELSEWHERE, 300, tx.now)
    worked(street.party)
    (waits,) = left(street.party)
    assert (waits.title, waits.state, waits.attempts) == (OTHER, WAITING, 0)
    assert ELSEWHERE in waits.outcome
    with street.party.store.count() as tx:
        leases.release(tx, lease)


def test_a_name_is_taken_once_and_is_a_plain_word(street: Street, chosen: Path) -> None:
    made(street.party, chosen)
    with pytest.raises(RefusedError, match="there is a campaign spring already"):
        made(street.party, chosen)
    for name in ("", "../x", "a b", "x" * 65):
        with pytest.raises(InputError, match="campaign's name"):
            create(street.party, Asked(name, terms(), file=chosen), "file")


def test_a_campaign_moves_on_its_edges_only(street: Street, chosen: Path) -> None:
    made(street.party, chosen)
    for change in (control.resume, lambda party, name: control.pause(party, name, "")):
        with pytest.raises(RefusedError):
            change(street.party, NAME)
    control.start(street.party, NAME)
    assert control.start(street.party, NAME).campaign.state is CampaignState.RUNNING
    control.pause(street.party, NAME, "")
    with pytest.raises(RefusedError, match="is paused"):
        control.start(street.party, NAME)


def test_the_policy_can_ask_for_an_approval_of_the_start(street: Street, chosen: Path) -> None:
    party = street.party
    made(party, chosen)
    strict = replace(party, settings=replace(party.settings, policy=replace(party.settings.policy, four_eyes=("all",))))
    with pytest.raises(approve.ApprovalRequiredError) as caught:
        control.start(strict, NAME)
    assert isinstance(caught.value, PolicyError)
    *_, action, name, _, request = shlex.split(caught.value.hint)
    assert (action, name) == ("campaign-start", NAME)
    assert json.loads(request) == {**terms().settings(), "meters": sorted((ONE, OTHER))}
    assert standing(party)[0] is CampaignState.CREATED


def test_a_file_of_more_than_a_page_may_hold_no_title_twice(street: Street, tmp_path: Path) -> None:
    absent = [f"4D4D4D{number:010X}" for number in range(1000, 1500)]
    file = titles_in(tmp_path / "many", ONE, *absent, ONE)
    with pytest.raises(InputError, match="501 meters cannot be worked on, of which the first 100") as caught:
        create(street.party, Asked(NAME, terms(), file=file), "file")
    assert len(caught.value.faults) == 100
    with street.party.store.read() as tx:
        assert meters.find(tx, ONE).title == ONE
