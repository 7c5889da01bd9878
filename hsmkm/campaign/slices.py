"""A worker's part in a campaign: claim a slice, work it off meter by meter, and tell of each.

| moment                 | one transaction                                                        |
|------------------------|------------------------------------------------------------------------|
| claim, or take over    | what `plan.decide` says; the meters are `claimed`, the slice has a fence |
| before each meter      | the slice is kept (its fence compared), the attempt counted            |
| after each meter       | where it stands from then on                                           |
| end of the slice       | what was not begun is given back                                       |

Before each meter the campaign is looked at again: paused, cancelled, outside of its window or stopped by failures it
goes no further. What fails for more than one meter (the store, the token) ends the slice between two meters; one that
was under way then is resolved by whoever takes the slice over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from hsmkm.campaign import plan
from hsmkm.campaign.attempt import Result, attempt, look
from hsmkm.campaign.eligible import StrangeWorkerError, refuse_stranger
from hsmkm.campaign.events import Claimed, Event, Refused, Worked
from hsmkm.campaign.plan import SLICE_SECONDS, Finish, Hindrance, Stop, Take, View, Wait
from hsmkm.campaign.terms import Terms
from hsmkm.config import load_model
from hsmkm.errors import InputError, RefusedError
from hsmkm.steps.communicate import is_gone, this_process
from hsmkm.steps.distribute import CLIENT
from hsmkm.steps.party import Party
from hsmkm.store import campaigns, fleet, parties, revision
from hsmkm.store.campaign import Campaign, CampaignMeter, CampaignState, Slice, Standing
from hsmkm.store.campaigns import SliceLostError
from hsmkm.store.candidate import Candidate
from hsmkm.store.store import Transaction

TOGETHER = 25
"""Meters behind one concentrator that holds keys which are renewed together, so that it gets one package for them."""


Unit = tuple[CampaignMeter, ...]


class _EndedBeforeError(RefusedError):
    """Another worker, or a person, said meanwhile where the campaign stands: nothing is recorded."""


class _AtWork:
    """The slices that threads of this process are at: one that it holds and is not at was left by a failure."""

    def __init__(self) -> None:
        self._ids: set[int] = set()
        self._lock = threading.Lock()

    def begin(self, number: int) -> None:
        with self._lock:
            self._ids.add(number)

    def end(self, number: int) -> None:
        with self._lock:
            self._ids.discard(number)

    def is_left(self, number: int, holder: str) -> bool:
        """Tell whether nobody works on a slice that this holder claimed, as far as can be known."""
        if holder == this_process():
            with self._lock:
                return number not in self._ids
        return is_gone(holder)


_at_work = _AtWork()


def work(party: Party, name: str) -> Generator[Event, None, None]:
    """Work off one slice of a campaign, telling of each meter; else say what comes next for a worker without one.

    Raises StrangeWorkerError where this process is not what the campaign was started with, StoreUnavailableError and
    the token's errors as they are: what was not begun is given back where that is still possible.
    """
    with party.store.read() as tx:
        campaign = campaigns.find(tx, name)
    found = _next(party, campaign)
    if isinstance(found, Slice):
        yield from _run(party, campaign, found)
    else:
        yield found


def work_any(party: Party) -> Generator[Event, None, None]:
    """Do the same for the first campaign that has work for this worker; the earliest waiting where none has."""
    with party.store.read() as tx:
        running = campaigns.listing(tx, CampaignState.RUNNING)
        now = tx.now
    waits: list[Wait] = []
    for campaign in running:
        try:
            found = _next(party, campaign)
        except (StrangeWorkerError, InputError) as error:
            reasons = error.reasons if isinstance(error, StrangeWorkerError) else ()
            yield Refused(campaign.name, error.message, reasons)
            continue
        if isinstance(found, Slice):
            yield from _run(party, campaign, found)
            return
        if isinstance(found, Wait):
            waits.append(found)
    idle = Wait(now + plan.POLL, "no campaign has work for this worker")
    yield min(waits, key=lambda item: item.until, default=idle)


def _next(party: Party, campaign: Campaign) -> Slice | Hindrance | Finish:
    """Claim a slice or take one over, or say what forbids it; a campaign that is at its end is brought there."""
    terms = Terms.of(campaign.settings)
    with party.store.count() as tx:
        revision.refuse_other(tx.connection)
        now = campaigns.get(tx, campaign.id)
        if now.state is CampaignState.RUNNING:
            refuse_stranger(party, now)
        decision = _decide(tx, terms, now)
        if isinstance(decision, Slice):
            return decision
    if isinstance(decision, Stop | Finish):
        _end(party, terms, campaign, decision)
    return decision


def _decide(tx: Transaction, terms: Terms, campaign: Campaign) -> Slice | Hindrance | Finish:
    view = _view(tx, campaign, campaigns.soonest(tx, campaign.id))
    hindrance = plan.hinder(terms, view, tx.now)
    if hindrance is None:
        left = campaigns.take_over(tx, campaign.id, this_process(), SLICE_SECONDS, _at_work.is_left)
        if left is not None:
            _at_work.begin(left.id)
            return left
    decision = plan.decide(terms, view, tx.now)
    if not isinstance(decision, Take):
        return decision
    taken = campaigns.claim(tx, campaign.id, this_process(), decision.meters, SLICE_SECONDS)
    if taken is None:
        return Wait(tx.now + plan.POLL, "others were faster")
    _at_work.begin(taken.id)
    campaigns.set_pace(tx, campaign.id, plan.pace(terms, view.paced, tx.now, len(taken.meters)))
    return taken


def _view(tx: Transaction, campaign: Campaign, soonest: datetime | None) -> View:
    """Give what decisions are made from."""
    counts = campaigns.counts(tx, campaign.id)
    return View(campaign.state, counts, campaign.paced, soonest, campaign.failed_before, campaign.done_before)


def _end(party: Party, terms: Terms, campaign: Campaign, decision: Stop | Finish) -> None:
    """Stop or finish a campaign, once, whichever worker comes first."""
    action = "campaign-stop" if isinstance(decision, Stop) else "campaign-finish"
    with party.store.read() as tx:
        found = {state.value: count for state, count in campaigns.counts(tx, campaign.id).items()}
    with suppress(_EndedBeforeError), party.store.begin(action, campaign.name, {"meters": found}) as tx:
        now = campaigns.get(tx, campaign.id)
        if type(plan.decide(terms, _view(tx, now, campaigns.soonest(tx, now.id)), tx.now)) is not type(decision):
            raise _EndedBeforeError(f"another worker came first to the end of campaign {campaign.name}")
        if isinstance(decision, Stop):
            campaigns.turn(tx, campaign.id, CampaignState.STOPPED, decision.why)
        else:
            campaigns.turn(tx, campaign.id, CampaignState.FINISHED)


def _run(party: Party, campaign: Campaign, held: Slice) -> Iterator[Event]:
    terms = Terms.of(campaign.settings)
    left = {meter.system_title: meter for meter in held.meters}
    try:
        yield Claimed(campaign.name, len(left), taken_over=held.fence > 1)
        for unit in _paced(terms, _units(party, terms, held.meters)):
            begun = _begin(party, terms, held, unit)
            if not begun:
                break
            left |= {meter.system_title: meter for meter in begun}
            results = _attempt(party, terms, unit, begun)
            settled = _settle(party, terms, held, begun, results)
            for meter in begun:
                del left[meter.system_title]
            for meter, state, result in zip(begun, settled, results, strict=True):
                yield Worked(campaign.name, meter.title, state, result.text)
    except SliceLostError:
        left = {}
    finally:
        _leave(party, held, tuple(left.values()))


def _leave(party: Party, held: Slice, left: Sequence[CampaignMeter]) -> None:
    """Give back what was not begun, and what was broken off as in doubt, unless another has taken the slice over."""
    try:
        with suppress(SliceLostError), party.store.count() as tx:
            campaigns.give_back(tx, held, left)
    finally:
        _at_work.end(held.id)


def _paced(terms: Terms, units: Iterable[Unit]) -> Iterator[Unit]:
    """Give the units no faster than the rate allows."""
    gap, begins = plan.gap(terms).total_seconds(), time.monotonic()
    for unit in units:
        time.sleep(max(begins - time.monotonic(), 0))
        yield unit
        begins += gap * len(unit)


def _begin(party: Party, terms: Terms, held: Slice, unit: Unit) -> list[CampaignMeter]:
    """Keep the slice and count the attempts; nothing where the campaign goes no further now."""
    with party.store.count() as tx:
        revision.refuse_other(tx.connection)
        campaigns.beat(tx, held, SLICE_SECONDS)
        if plan.hinder(terms, _view(tx, campaigns.get(tx, held.campaign), None), tx.now) is not None:
            return []
        return [meter if plan.is_spent(terms, meter) else campaigns.begin(tx, held, meter) for meter in unit]


def _attempt(party: Party, terms: Terms, unit: Unit, begun: Sequence[CampaignMeter]) -> list[Result]:
    """Make the attempts; a meter that had all of them already is only looked at."""
    fresh = [now for before, now in zip(unit, begun, strict=True) if not plan.is_spent(terms, before)]
    made = dict(zip((meter.system_title for meter in fresh), attempt(party, terms, fresh), strict=True))
    return [made.get(meter.system_title) or look(party, terms, meter) for meter in begun]


def _settle(
    party: Party, terms: Terms, held: Slice, begun: Sequence[CampaignMeter], results: Sequence[Result]
) -> list[Standing]:
    found: list[Standing] = []
    with party.store.count() as tx:
        for meter, result in zip(begun, results, strict=True):
            move = plan.after(terms, meter, result.end, tx.now)
            told = replace(meter, attempts=move.attempts)
            campaigns.settle(tx, held, told, move.state, move.not_before, result.text)
            found.append(move.state)
    return found


def _units(party: Party, terms: Terms, meters: Sequence[CampaignMeter]) -> list[Unit]:
    """Put meters together whose concentrator takes their keys; every other one stands alone."""
    with party.store.read() as tx:
        places = fleet.of_titles(tx, [meter.system_title for meter in meters])
        named = {one.concentrator for one in places.values() if one.concentrator}
        clients = {name for name in named if (found := parties.get(tx, name)) and found.kind == CLIENT}
    units: list[Unit] = []
    waiting: dict[str, list[CampaignMeter]] = {}
    for meter in meters:
        place = places.get(meter.system_title)
        if place is None or place.concentrator not in clients or not _gives_keys(party, terms, place):
            units.append((meter,))
            continue
        behind = waiting.setdefault(place.concentrator or "", [])
        behind.append(meter)
        if len(behind) == TOGETHER:
            units.append(tuple(waiting.pop(place.concentrator or "")))
    return units + [tuple(behind) for behind in waiting.values()]


def _gives_keys(party: Party, terms: Terms, place: Candidate) -> bool:
    try:
        return load_model(place.model, party.home).association(terms.association).for_concentrator
    except InputError:
        return False
