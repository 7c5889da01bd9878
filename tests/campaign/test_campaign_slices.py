"""A campaign over real virtual meters, worked off in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hsmkm.campaign import control, slices
from hsmkm.campaign.events import Claimed, Worked
from hsmkm.campaign.plan import Finish, Rest, Stop, Wait
from hsmkm.campaign.terms import Limit
from hsmkm.errors import RefusedError
from hsmkm.simulator.behaviour import Fault
from hsmkm.steps.into_force import switch
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.store import audit, campaigns, key_sets, meters
from hsmkm.store.campaign import CampaignState, Standing
from hsmkm.store.key_set import KeyState
from hsmkm.token.types import KeyRole
from tests.campaign.conftest import (
    CLAIMED,
    DONE,
    NAME,
    WAITING,
    left,
    made,
    standing,
    started,
    terms,
    titles_in,
    worked,
)
from tests.field import key_states
from tests.street import ONE, OTHER, Street


def test_every_meter_is_renewed_once_and_the_campaign_finishes(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    claimed, *events = worked(street.party)
    assert claimed == Claimed(NAME, 2, taken_over=False)
    assert {(item.meter, item.state) for item in events if isinstance(item, Worked)} == {(ONE, DONE), (OTHER, DONE)}
    assert worked(street.party) == [Finish()]
    assert standing(street.party) == (CampaignState.FINISHED, {DONE: 2})
    assert key_states(street.party, 1) == [(1, "deactivated"), (2, "active")]
    assert worked(street.party) == [Rest(CampaignState.FINISHED)]


def test_workers_that_come_to_its_end_together_record_it_once(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    worked(street.party)
    with street.party.store.read() as tx:
        running = campaigns.find(tx, NAME)
    for _ in range(2):
        slices._end(street.party, terms(), running, Finish())
    with street.party.store.read() as tx:
        (told,) = audit.tally(tx, "campaign-finish")
    assert told.count == 1
    assert standing(street.party)[0] is CampaignState.FINISHED


def test_one_that_is_not_started_rests(street: Street, chosen: Path) -> None:
    made(street.party, chosen)
    assert worked(street.party) == [Rest(CampaignState.CREATED)]
    assert standing(street.party) == (CampaignState.CREATED, {WAITING: 2})


def test_a_meter_renewed_by_hand_meanwhile_is_done(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    renew(street.party, [ONE], GLOBAL_KEYS)
    worked(street.party)
    assert standing(street.party)[1] == {DONE: 2}
    assert key_states(street.party, 1)[-1] == (2, "active")


def lose_gbek(street: Street, title: str) -> None:
    """Let a meter's keys in force be without GBEK, as those of a maker who gave none."""
    party = street.party
    with party.store.begin("without-gbek", title, {}) as tx:
        meter = meters.find(tx, title)
        before = key_sets.active(tx, meter.system_title, 0, 1)
        assert before is not None
        ref = replace(before.ref, generation=before.ref.generation + 1)
        keys = tuple(key for key in before.keys if key.role is not KeyRole.GBEK)
        after = replace(before, ref=ref, keys=keys, state=KeyState.PRE_ACTIVE, mac=None, batch=tx.sequence)
        after = key_sets.authenticate(party.vault, after, meter)
        key_sets.add(tx, after)
        switch(tx, before, after)


def test_a_key_that_the_meter_did_not_have_before_counts_as_another_one(street: Street, chosen: Path) -> None:
    lose_gbek(street, ONE)
    started(street.party, chosen)
    renew(street.party, [ONE], GLOBAL_KEYS)
    worked(street.party)
    assert standing(street.party)[1] == {DONE: 2}
    assert key_states(street.party, 1)[-1] == (3, "active")


def test_one_renewed_in_part_only_is_not_done_yet(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    renew(street.party, [ONE], GLOBAL_KEYS[:1])
    worked(street.party)
    assert key_states(street.party, 1)[-1] == (3, "active")


def test_a_meter_in_doubt_is_resolved_by_the_next_attempt(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    street.fails_once(ONE, Fault.DROP_AFTER)
    worked(street.party)
    (doubtful,) = left(street.party)
    assert (doubtful.title, doubtful.state, doubtful.attempts) == (ONE, Standing.UNKNOWN, 1)
    assert "in doubt" in doubtful.outcome
    worked(street.party)
    assert standing(street.party)[1] == {DONE: 2}
    assert key_states(street.party, 1)[-1][1] == "active"


def test_one_that_stays_away_is_given_up_and_listed_with_the_reason(street: Street, chosen: Path) -> None:
    started(street.party, chosen, attempts=2)
    with street.party.store.begin("moved", ONE, {}) as tx:
        meters.update(tx, replace(meters.find(tx, ONE), address="127.0.0.1:1"))
    worked(street.party)
    worked(street.party)
    assert worked(street.party) == [Finish()]
    assert standing(street.party) == (CampaignState.FINISHED, {DONE: 1, Standing.GAVE_UP: 1})
    (lost,) = left(street.party)
    assert (lost.title, lost.attempts) == (ONE, 2)
    assert "127.0.0.1:1" in lost.outcome


def test_it_stops_by_itself_at_its_limit_and_goes_on_when_resumed(street: Street, chosen: Path) -> None:
    started(street.party, chosen, stop=Limit(meters=1), slice=1)
    with street.party.store.begin("moved", ONE, {}) as tx:
        address = meters.find(tx, ONE).address
        meters.update(tx, replace(meters.find(tx, ONE), address="127.0.0.1:1"))
    worked(street.party)
    (stop,) = worked(street.party)
    assert isinstance(stop, Stop)
    state, counts = standing(street.party)
    assert (state, counts) == (CampaignState.STOPPED, {Standing.FAILED: 1, WAITING: 1})
    with street.party.store.begin("moved", ONE, {}) as tx:
        assert "limit is 1" in campaigns.find(tx, NAME).reason
        meters.update(tx, replace(meters.find(tx, ONE), address=address))
    control.resume(street.party, NAME)
    worked(street.party)
    worked(street.party)
    assert standing(street.party)[1] == {DONE: 2}


def test_a_pause_stops_it_between_two_meters_and_nothing_is_lost(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    running = slices.work(street.party, NAME)
    next(running)
    assert isinstance(next(running), Worked)
    control.pause(street.party, NAME, "storm")
    assert list(running) == []
    assert standing(street.party) == (CampaignState.PAUSED, {DONE: 1, WAITING: 1})
    assert worked(street.party) == [Rest(CampaignState.PAUSED)]
    control.resume(street.party, NAME)
    worked(street.party)
    assert standing(street.party)[1] == {DONE: 2}


def test_a_cancelled_one_lists_what_it_did_not_do_and_never_runs_again(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    running = slices.work(street.party, NAME)
    next(running)
    next(running)
    control.cancel(street.party, NAME, "enough")
    assert list(running) == []
    assert [item.state for item in left(street.party)] == [WAITING]
    for change in (control.start, control.resume):
        with pytest.raises(RefusedError, match="is cancelled"):
            change(street.party, NAME)


def test_a_worker_that_ends_in_good_order_gives_back_what_it_did_not_begin(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    running = slices.work(street.party, NAME)
    next(running)
    next(running)
    running.close()
    assert standing(street.party)[1] == {DONE: 1, WAITING: 1}


def test_the_slice_of_a_worker_that_died_is_taken_over_with_what_it_was_at(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    with street.party.store.count() as tx:
        campaign = campaigns.find(tx, NAME)
        held = campaigns.claim(tx, campaign.id, "elsewhere:1:1", 2, 300)
        assert held is not None
        campaigns.begin(tx, held, held.meters[0])
    (waits,) = worked(street.party)
    assert isinstance(waits, Wait)
    assert standing(street.party)[1] == {CLAIMED: 2}
    with street.party.store.count() as tx:
        campaigns.beat(tx, held, 0)
    claimed, *_ = worked(street.party)
    assert claimed == Claimed(NAME, 2, taken_over=True)
    assert standing(street.party)[1] == {DONE: 2}
    with pytest.raises(campaigns.SliceLostError), street.party.store.count() as tx:
        campaigns.beat(tx, held, 300)
    with pytest.raises(campaigns.SliceLostError), street.party.store.count() as tx:
        campaigns.begin(tx, held, held.meters[1])


def test_a_meter_at_which_workers_die_is_given_up(street: Street, chosen: Path) -> None:
    started(street.party, titles_in(chosen, ONE), attempts=2)
    for _ in range(2):
        with street.party.store.count() as tx:
            held = campaigns.claim(tx, campaigns.find(tx, NAME).id, "elsewhere:1:1", 1, 0)
            held = held or campaigns.take_over(tx, campaigns.find(tx, NAME).id, "elsewhere:1:1", 0, lambda *_: True)
            assert held is not None
            campaigns.begin(tx, held, held.meters[0])
    worked(street.party)
    (lost,) = left(street.party)
    assert lost.state is Standing.GAVE_UP
    assert lost.outcome == campaigns.BROKEN_OFF
    assert key_states(street.party, 1) == [(1, "active")]
