"""Campaigns in the store: claimed in slices, kept, taken over, and moved along their edges only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import pytest

from hsmkm.errors import RefusedError
from hsmkm.store import campaigns
from hsmkm.store.campaign import EDGES, METER_EDGES, CampaignState, Slice, Standing
from hsmkm.store.campaigns import SliceLostError
from hsmkm.store.store import Store, Transaction
from tests.store.conftest import NOW, SoftwareAuthenticator

Change = Callable[[Transaction], object]
LATER = NOW + timedelta(hours=1)
TITLES = [b"MMM" + number.to_bytes(5, "big") for number in range(1, 11)]


class Clock:
    """A clock that a test sets."""

    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ticking(url: str, authenticator: SoftwareAuthenticator, clock: Clock) -> Iterator[Store]:
    with Store.open(url, authenticator, "tester", clock) as opened:
        with opened.begin("campaign-create", "spring", {}) as tx:
            campaign = campaigns.create(tx, "spring", "renew", {"slice": 4})
            assert campaigns.add_meters(tx, campaign, [(title, 1, "") for title in TITLES[:-1]]) == 9
            campaigns.add_meters(tx, campaign, [(TITLES[-1], 0, "it is destroyed")])
        yield opened
        with opened.read() as tx:
            assert campaigns.counts(tx, campaign) == campaigns.tally(tx, campaign)


def claim(store: Store, most: int = 4, holder: str = "one", seconds: int = 60) -> Slice:
    with store.count() as tx:
        found = campaigns.claim(tx, campaigns.find(tx, "spring").id, holder, most, seconds)
    assert found is not None
    return found


def counts(store: Store) -> dict[str, int]:
    with store.read() as tx:
        found = campaigns.counts(tx, campaigns.find(tx, "spring").id)
    return {state.value: count for state, count in found.items() if count}


def test_no_meter_is_in_two_slices(ticking: Store) -> None:
    slices = [claim(ticking, 4, holder) for holder in ("one", "other", "third")]
    titles = [meter.system_title for found in slices for meter in found.meters]
    assert sorted(titles) == TITLES[:-1]
    assert counts(ticking) == {"claimed": 9, "skipped": 1}
    with ticking.count() as tx:
        assert campaigns.claim(tx, slices[0].campaign, "one", 4, 60) is None


def test_what_failed_comes_again_when_its_time_has_come_and_doubts_come_first(ticking: Store, clock: Clock) -> None:
    held = claim(ticking, 2)
    failed, doubtful = held.meters
    with ticking.count() as tx:
        for meter, state in ((failed, Standing.FAILED), (doubtful, Standing.UNKNOWN)):
            begun = campaigns.begin(tx, held, meter)
            assert (begun.attempts, begun.outcome) == (1, campaigns.BROKEN_OFF)
            campaigns.settle(tx, held, begun, state, LATER, "no answer")
        campaigns.give_back(tx, held, ())
    assert failed.system_title not in {meter.system_title for meter in claim(ticking, 7).meters}
    with ticking.read() as tx:
        assert campaigns.soonest(tx, held.campaign) == LATER
    clock.now = LATER
    assert [meter.state for meter in claim(ticking, 2).meters] == [Standing.UNKNOWN, Standing.FAILED]


def test_a_slice_that_expired_is_taken_over_and_its_holder_is_out(ticking: Store, clock: Clock) -> None:
    held = claim(ticking)
    with ticking.count() as tx:
        assert campaigns.take_over(tx, held.campaign, "other", 60, lambda *_: False) is None
        begun = campaigns.begin(tx, held, held.meters[0])
    clock.now = NOW + timedelta(seconds=60)
    with ticking.count() as tx:
        taken = campaigns.take_over(tx, held.campaign, "other", 60, lambda *_: False)
    assert taken is not None
    assert (taken.id, taken.fence) == (held.id, held.fence + 1)
    assert [meter.attempts for meter in taken.meters] == [1, 0, 0, 0]
    for late in (
        lambda tx: campaigns.beat(tx, held, 60),
        lambda tx: campaigns.give_back(tx, held, held.meters),
        lambda tx: campaigns.begin(tx, held, held.meters[1]),
        lambda tx: campaigns.settle(tx, held, begun, Standing.DONE, NOW, "late"),
    ):
        refused(ticking, late)
    with ticking.count() as tx:
        campaigns.beat(tx, taken, 60)
        campaigns.give_back(tx, taken, taken.meters)
    assert counts(ticking) == {"waiting": 8, "unknown": 1, "skipped": 1}


def refused(store: Store, change: Change) -> None:
    with pytest.raises(SliceLostError), store.count() as tx:
        change(tx)


def test_one_whose_holder_is_known_to_be_gone_is_taken_over_at_once(ticking: Store) -> None:
    held = claim(ticking, holder="gone")
    asked: list[tuple[int, str]] = []

    def is_left(number: int, holder: str) -> bool:
        asked.append((number, holder))
        return holder == "gone"

    with ticking.count() as tx:
        assert campaigns.take_over(tx, held.campaign, "other", 60, is_left) is not None
        assert [holder for holder, _ in campaigns.holders(tx, held.campaign)] == ["other"]
    assert asked == [(held.id, "gone")]


@pytest.mark.parametrize("state", CampaignState)
def test_a_campaign_moves_along_its_edges_only(ticking: Store, state: CampaignState) -> None:
    ways = {
        CampaignState.CREATED: (),
        CampaignState.RUNNING: (CampaignState.RUNNING,),
        CampaignState.CANCELLED: (CampaignState.CANCELLED,),
    }
    way = ways.get(state, (CampaignState.RUNNING, state))
    with ticking.begin("campaign", "spring", {}) as tx:
        campaign = campaigns.find(tx, "spring").id
        for step in way:
            campaigns.turn(tx, campaign, step)
    for to in CampaignState:
        allowed = to in EDGES[state]
        assert allowed is not is_refused(ticking, partial(campaigns.turn, campaign=campaign, to=to))


@pytest.mark.parametrize("to", Standing)
def test_a_claimed_meter_ends_along_its_edges_only(ticking: Store, to: Standing) -> None:
    held = claim(ticking, 1)
    (meter,) = held.meters
    allowed = to in METER_EDGES[Standing.CLAIMED]
    assert allowed is not is_refused(ticking, lambda tx: campaigns.settle(tx, held, meter, to, NOW, ""))


def is_refused(store: Store, change: Change) -> bool:
    """Try a change and undo it."""

    def undone() -> None:
        with store.count() as tx:
            change(tx)
            raise UndoneError

    with pytest.raises((RefusedError, UndoneError)) as raised:
        undone()
    return raised.type is not UndoneError


class UndoneError(Exception):
    """A change was not refused, and is rolled back."""


def test_a_meter_is_in_a_campaign_once_and_a_name_is_taken_once(ticking: Store) -> None:
    def again(tx: Transaction) -> None:
        campaigns.add_meters(tx, campaigns.find(tx, "spring").id, [(TITLES[0], 1, "")])

    with pytest.raises(RefusedError), ticking.count() as tx:
        again(tx)
    assert is_refused(ticking, lambda tx: campaigns.create(tx, "spring", "renew", {}))
    assert is_refused(ticking, lambda tx: campaigns.find(tx, "autumn"))


def test_the_pace_keeps_its_milliseconds(ticking: Store) -> None:
    with ticking.count() as tx:
        campaign = campaigns.find(tx, "spring").id
        campaigns.set_pace(tx, campaign, NOW + timedelta(milliseconds=1250))
        assert campaigns.get(tx, campaign).paced == NOW + timedelta(milliseconds=1250)


def test_what_is_not_done_is_read_by_title(ticking: Store) -> None:
    held = claim(ticking, 1)
    with ticking.count() as tx:
        campaigns.settle(tx, held, replace(held.meters[0], attempts=1), Standing.DONE, NOW, "renewed")
    with ticking.read() as tx:
        found = list(campaigns.not_done(tx, held.campaign))
    assert [meter.system_title for meter in found] == [
        title for title in TITLES if title != held.meters[0].system_title
    ]
    assert found[-1].outcome == "it is destroyed"
