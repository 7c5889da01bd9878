"""What comes next in a campaign: the decisions, from values alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hsmkm.campaign.plan import (
    POLL,
    End,
    Finish,
    Rest,
    Stop,
    Take,
    View,
    Wait,
    after,
    decide,
    failures,
    gap,
    hinder,
    pace,
    slice_size,
)
from hsmkm.campaign.terms import LONGEST_BACK_OFF, Limit, Terms, parse_rate
from hsmkm.campaign.window import Window
from hsmkm.errors import InputError
from hsmkm.store.campaign import EDGES, METER_EDGES, CampaignMeter, CampaignState, Standing
from hsmkm.token.types import KeyRole

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TERMS = Terms(roles=(KeyRole.GUEK,))


def view(state: CampaignState = CampaignState.RUNNING, **counts: int) -> View:
    found = {Standing(name.replace("_", "-")): count for name, count in counts.items()}
    soonest = NOW if any(found.get(one) for one in (Standing.WAITING, Standing.FAILED, Standing.UNKNOWN)) else None
    return View(state, found, NOW, soonest)


def meter(attempts: int = 1) -> CampaignMeter:
    return CampaignMeter(b"MMM\x00\x00\x00\x00\x01", Standing.CLAIMED, attempts, NOW, 1, "")


def test_a_running_campaign_takes_a_slice() -> None:
    assert decide(TERMS, view(waiting=1000), NOW) == Take(100)


def test_towards_the_end_slices_get_smaller_so_that_every_worker_has_some() -> None:
    assert [slice_size(TERMS, left) for left in (1000, 400, 80, 12, 1)] == [100, 50, 10, 4, 4]


@pytest.mark.parametrize("state", [state for state in CampaignState if state is not CampaignState.RUNNING])
def test_one_that_does_not_run_rests(state: CampaignState) -> None:
    assert decide(TERMS, view(state, waiting=5), NOW) == Rest(state)
    assert hinder(TERMS, view(state, waiting=5), NOW) == Rest(state)


def test_it_is_finished_when_no_meter_is_left_or_claimed() -> None:
    assert decide(TERMS, view(done=5, gave_up=1, skipped=2), NOW) == Finish()
    waits = decide(TERMS, view(done=5, claimed=1), NOW)
    assert isinstance(waits, Wait)
    assert waits.until == NOW + POLL


def test_a_finished_campaign_ends_whatever_the_hour() -> None:
    night = Terms(window=Window.parse("22:00-05:00"), stop=Limit(meters=1))
    assert decide(night, view(done=1, gave_up=9), NOW) == Finish()


def test_outside_of_the_window_nothing_begins() -> None:
    night = Terms(window=Window.parse("22:00-05:00"))
    waits = decide(night, view(waiting=5), NOW)
    assert isinstance(waits, Wait)
    assert waits.until == NOW.replace(hour=22)
    assert hinder(night, view(waiting=5), NOW) == waits
    assert decide(night, view(waiting=5), NOW.replace(hour=22)) == Take(4)


def test_a_rate_spreads_the_slices_and_makes_them_small() -> None:
    slow = Terms(rate=2.0)
    assert slice_size(slow, 1000) == 20
    assert slice_size(Terms(rate=0.01), 1000) == 1
    assert slice_size(Terms(rate=1000.0), 1000) == 100
    assert gap(slow) == timedelta(seconds=0.5)
    paced = pace(slow, NOW - timedelta(hours=1), NOW, 20)
    assert paced == NOW + timedelta(seconds=10)
    counts = view(waiting=1000)
    waits = decide(slow, View(counts.state, counts.counts, paced, NOW), NOW)
    assert waits == Wait(paced, "the rate allows no more")
    assert decide(slow, View(counts.state, counts.counts, paced, NOW), paced) == Take(20)


def test_meters_that_failed_wait_for_their_next_attempt() -> None:
    later = NOW + timedelta(hours=1)
    waits = decide(TERMS, View(CampaignState.RUNNING, {Standing.FAILED: 2}, NOW, later), NOW)
    assert isinstance(waits, Wait)
    assert waits.until == NOW + POLL


def test_a_number_of_failures_stops_it() -> None:
    terms = Terms(stop=Limit(meters=3))
    assert not failures(terms, view(failed=1, unknown=1))
    assert isinstance(decide(terms, view(waiting=1, failed=1, unknown=1, gave_up=1), NOW), Stop)


def test_a_share_of_failures_stops_it_once_enough_were_tried() -> None:
    terms = Terms(stop=Limit(per_cent=10))
    assert not failures(terms, view(failed=3, done=16))
    assert failures(terms, view(failed=3, done=17))
    assert not failures(terms, view(failed=3, done=28))


def test_the_limit_counts_from_the_last_start() -> None:
    counts = {Standing.FAILED: 5, Standing.DONE: 100, Standing.WAITING: 1}
    started = View(CampaignState.RUNNING, counts, NOW, NOW, failed_before=5, done_before=100)
    assert (started.failing, started.tried) == (0, 0)
    assert decide(Terms(stop=Limit(meters=3)), started, NOW) == Take(4)


def test_an_attempt_that_fails_is_made_again_later_and_not_for_ever() -> None:
    terms = Terms(attempts=3, back_off=timedelta(minutes=10))
    assert after(terms, meter(1), End.FAILED, NOW).not_before == NOW + timedelta(minutes=10)
    second = after(terms, meter(2), End.UNKNOWN, NOW)
    assert (second.state, second.not_before) == (Standing.UNKNOWN, NOW + timedelta(minutes=20))
    assert after(terms, meter(3), End.FAILED, NOW).state is Standing.GAVE_UP
    assert after(terms, meter(3), End.DONE, NOW).state is Standing.DONE
    assert after(terms, meter(1), End.UNFIT, NOW).state is Standing.SKIPPED
    patient = Terms(attempts=100, back_off=timedelta(hours=1))
    assert after(patient, meter(99), End.FAILED, NOW).not_before == NOW + LONGEST_BACK_OFF


def test_what_is_claimed_ends_somewhere_and_what_ended_stays() -> None:
    ends = {after(TERMS, meter(attempts), end, NOW).state for attempts in (1, 3) for end in End}
    assert ends <= METER_EDGES[Standing.CLAIMED]
    for state, ways in METER_EDGES.items():
        assert state is Standing.CLAIMED or ways <= {Standing.CLAIMED}
    assert [state for state, ways in EDGES.items() if not ways] == [CampaignState.FINISHED, CampaignState.CANCELLED]


def test_terms_survive_the_store() -> None:
    terms = Terms(
        roles=(KeyRole.GUEK, KeyRole.GAK),
        association="management",
        rate=0.5,
        window=Window.parse("22:00-05:00 Europe/Berlin"),
        attempts=5,
        back_off=timedelta(seconds=30),
        stop=Limit(per_cent=2.5),
        slice=10,
    )
    assert Terms.of(terms.settings()) == terms
    with pytest.raises(InputError, match="none of this version"):
        Terms.of({**terms.settings(), "roles": "guek"})


def test_every_bad_term_is_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Terms(kind="paint", rate=0.0, attempts=0, slice=0, by="magic", back_off=timedelta(days=2)).checked()
    assert [fault.source for fault in caught.value.faults] == [
        "--kind",
        "--by",
        "--rate",
        "--attempts",
        "--back-off",
        "--slice",
    ]


@pytest.mark.parametrize(("text", "rate"), [("2", 2.0), ("0.5/s", 0.5), ("30/min", 0.5), ("1800/h", 0.5)])
def test_a_rate_is_meters_by_time(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0", "-1", "2/day", "nan", "1e9", "inf/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_rate(text)


@pytest.mark.parametrize(("text", "shown"), [("50", "50"), ("5%", "5%"), ("2.5 %", "2.5%"), ("100%", "100%")])
def test_a_limit_is_a_number_or_a_share(text: str, shown: str) -> None:
    assert str(Limit.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-5", "five"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Limit.parse(text)
