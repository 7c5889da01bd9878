"""What comes next in a campaign, decided from values alone: rows, clock, rate, window and failures.

Nothing here reads a clock, a store or a meter, so that a simulation can drive these decisions as the workers do:

    decision = decide(terms, view, now)
    if isinstance(decision, Take):              # claim up to `decision.meters`, in one transaction
        paced = pace(terms, view.paced, now, claimed)
    ...                                         # before each meter, with a fresh view:
    if (hindrance := hinder(terms, view, now)): # stop between two meters, and give the rest of the slice back
        ...
    move = after(terms, meter, ended, now)      # the meter's row from then on
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from hsmkm.campaign.terms import LONGEST_BACK_OFF, Terms
from hsmkm.store.campaign import LEFT, CampaignMeter, CampaignState, Counts, Standing

POLL = timedelta(seconds=5)
"""How long to wait for what others are at."""

FEWEST_TRIED = 20
"""Before so many meters were tried a share of failures says nothing."""

PACED_SLICE_SECONDS = 10.0
"""Under a rate a slice is no longer than this, so that several workers can share the rate."""

SHARES, FEWEST_TOGETHER = 8, 4
"""A worker claims no more than one of so many parts of what is left, unless that is next to nothing."""

SLICE_SECONDS = 300
"""How long a slice belongs to a worker that says nothing: it beats before each meter."""


@dataclass(frozen=True, slots=True)
class View:
    """Where a campaign stands now: `soonest` is when the first of the meters that are left may be tried.

    `failed_before` and `done_before` are how many had failed and were done when it was started last.
    """

    state: CampaignState
    counts: Counts
    paced: datetime
    soonest: datetime | None
    failed_before: int = 0
    done_before: int = 0

    @property
    def left(self) -> int:
        """How many meters are still to be claimed."""
        return sum(self.counts.get(state, 0) for state in LEFT)

    @property
    def failing(self) -> int:
        """How many meters failed at their last attempt, since the campaign was started last."""
        failed = sum(self.counts.get(state, 0) for state in (Standing.FAILED, Standing.UNKNOWN, Standing.GAVE_UP))
        return max(failed - self.failed_before, 0)

    @property
    def tried(self) -> int:
        """How many meters were tried, since the campaign was started last."""
        return max(self.counts.get(Standing.DONE, 0) + self.failing - self.done_before, 0)


@dataclass(frozen=True, slots=True)
class Take:
    """Claim up to so many meters now."""

    meters: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at a moment, not before."""

    until: datetime
    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Too much failed: the campaign stops by itself."""

    why: str


@dataclass(frozen=True, slots=True)
class Finish:
    """No meter is left."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The campaign is not running; nothing is done for it."""

    state: CampaignState


Hindrance = Rest | Stop | Wait
Decision = Take | Finish | Hindrance


def decide(terms: Terms, view: View, now: datetime) -> Decision:
    """Say what a worker that has no slice does next."""
    hindrance = hinder(terms, view, now)
    if isinstance(hindrance, Rest):
        return hindrance
    if not view.left and not view.counts.get(Standing.CLAIMED, 0):
        return Finish()
    if hindrance is not None:
        return hindrance
    return _nothing_yet(view, now) or Take(slice_size(terms, view.left))


def _nothing_yet(view: View, now: datetime) -> Wait | None:
    if view.soonest is None:
        return Wait(now + POLL, "others are at the last meters")
    if view.soonest > now:
        return Wait(min(view.soonest, now + POLL), "what is left waits for its next attempt")
    return Wait(view.paced, "the rate allows no more") if view.paced > now else None


def hinder(terms: Terms, view: View, now: datetime) -> Hindrance | None:
    """Say what forbids to begin with a meter, or nothing."""
    if view.state is not CampaignState.RUNNING:
        return Rest(view.state)
    if too_many := failures(terms, view):
        return Stop(too_many)
    if terms.window is not None and not terms.window.is_open(now):
        return Wait(terms.window.opens(now), f"the maintenance window {terms.window} is closed")
    return None


def failures(terms: Terms, view: View) -> str:
    """Say why so many failures are too many; empty if they are not."""
    limit, failing, tried = terms.stop, view.failing, view.tried
    if limit is None:
        return ""
    if limit.meters is not None and failing >= limit.meters:
        return f"{failing} meters failed, and the limit is {limit}"
    if limit.per_cent is not None and tried >= FEWEST_TRIED and failing * 100 >= limit.per_cent * tried:
        return f"{failing} of {tried} meters tried failed, and the limit is {limit}"
    return ""


def slice_size(terms: Terms, left: int) -> int:
    """Give how many meters are claimed together: fewer under a rate, and towards the end, for all to have some."""
    most = min(terms.slice, max(FEWEST_TOGETHER, math.ceil(left / SHARES)))
    if terms.rate is None:
        return most
    return max(1, min(most, math.floor(terms.rate * PACED_SLICE_SECONDS)))


def pace(terms: Terms, paced: datetime, now: datetime, claimed: int) -> datetime:
    """Give the moment before which nothing more may be claimed, after so many meters were."""
    if terms.rate is None:
        return paced
    return max(paced, now) + timedelta(seconds=claimed / terms.rate)


def gap(terms: Terms) -> timedelta:
    """Give the time between the beginnings of two meters of a slice."""
    return timedelta() if terms.rate is None else timedelta(seconds=1 / terms.rate)


BUSY_PAUSE = timedelta(seconds=30)
"""How long a meter waits that another process speaks with."""


class End(StrEnum):
    """How an attempt on a meter ended.

    `busy`: another process speaks with it, so that no attempt was made. `unfit`: it cannot be worked on at all, such as
    one that was destroyed meanwhile.
    """

    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    BUSY = "busy"
    UNFIT = "unfit"


@dataclass(frozen=True, slots=True)
class Move:
    """What becomes of a meter's row."""

    state: Standing
    not_before: datetime
    attempts: int


def after(terms: Terms, meter: CampaignMeter, end: End, now: datetime) -> Move:
    """Say where a meter stands after an attempt, which `meter.attempts` counts already."""
    if end in (End.DONE, End.UNFIT):
        return Move(Standing.DONE if end is End.DONE else Standing.SKIPPED, now, meter.attempts)
    if end is End.BUSY:
        return Move(Standing.WAITING, now + BUSY_PAUSE, meter.attempts - 1)
    if meter.attempts >= terms.attempts:
        return Move(Standing.GAVE_UP, now, meter.attempts)
    state = Standing.UNKNOWN if end is End.UNKNOWN else Standing.FAILED
    return Move(state, now + pause_after(terms, meter.attempts), meter.attempts)


def pause_after(terms: Terms, attempts: int) -> timedelta:
    """Give the pause after so many attempts: doubled each time, a day at most."""
    doubled = terms.back_off.total_seconds() * 2.0 ** min(attempts - 1, 32)
    return min(timedelta(seconds=min(doubled, LONGEST_BACK_OFF.total_seconds())), LONGEST_BACK_OFF)


def is_spent(terms: Terms, meter: CampaignMeter) -> bool:
    """Tell whether a meter had all its attempts already: whoever made the last one did not live to say how it ended."""
    return meter.attempts >= terms.attempts
