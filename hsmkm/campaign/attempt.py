"""One attempt on a meter of a campaign: what is true is looked at first, then resolved or renewed, and told.

What the store says of the meter's keys decides, not what a worker remembers: a meter whose keys are all others than
those in force when the campaign was made is done, whoever renewed them; one whose renewal did not end is resolved,
within the limits of attempts that are durable there. So whatever a worker that died was at, the next one goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hsmkm.campaign.plan import End
from hsmkm.campaign.terms import METHODS, Terms
from hsmkm.config import load_model
from hsmkm.errors import HsmkmError, PolicyError, TokenRefusedError
from hsmkm.steps import agree
from hsmkm.steps.communicate import find_meter
from hsmkm.steps.distribute import owed_activations, owed_at
from hsmkm.steps.party import Party
from hsmkm.steps.renew import InDoubtError, failing, renew
from hsmkm.steps.resolve import identity_of, resolve
from hsmkm.steps.results import Outcome
from hsmkm.store import groups, key_sets, renewals
from hsmkm.store.campaign import CampaignMeter
from hsmkm.store.groups import SHARED_ROLES
from hsmkm.store.key_set import KeySetRef
from hsmkm.store.leases import HeldError

LONGEST_TEXT = 500


@dataclass(frozen=True, slots=True)
class Result:
    """How an attempt on a meter ended, and what is said of it."""

    end: End
    text: str


Place = tuple[int, int]


def attempt(party: Party, terms: Terms, meters: Sequence[CampaignMeter]) -> list[Result]:
    """Make an attempt on each meter; what is renewed is renewed together, so that concentrators get one package.

    Raises what is not one meter's alone: the store is unavailable, the token gone.
    """
    results: dict[bytes, Result] = {}
    for meter in meters:
        found = _before(party, terms, meter)
        if found is not None:
            results[meter.system_title] = found
    left = [meter for meter in meters if meter.system_title not in results]
    results |= _renew(party, terms, left)
    return [results[meter.system_title] for meter in meters]


def look(party: Party, terms: Terms, meter: CampaignMeter) -> Result:
    """Say what is true of a meter that had all its attempts, without another one."""
    outcomes: list[Outcome] = []
    with failing(outcomes, meter.title):
        if is_renewed(party, terms, meter, _place(party, terms, meter)):
            return Result(End.DONE, "renewed")
    return Result(End.FAILED, _text(outcomes[0].detail if outcomes else meter.outcome))


def _before(party: Party, terms: Terms, meter: CampaignMeter) -> Result | None:
    """Say how it ended where it needs no renewal, or cannot have one; nothing where it is to be renewed."""
    outcomes: list[Outcome] = []
    found: Result | None = None
    try:
        with failing(outcomes, meter.title):
            found = _settled(party, terms, meter)
    except (TokenRefusedError, PolicyError) as error:
        return Result(End.FAILED, _text(error.message))
    return _result(outcomes[0]) if outcomes else found


def _settled(party: Party, terms: Terms, meter: CampaignMeter) -> Result | None:
    stored = find_meter(party, meter.title)
    if stored.at_rest is not None:
        return Result(End.UNFIT, f"it is {stored.at_rest}")
    place = _place(party, terms, meter)
    if _is_open(party, meter, place):
        resolve(party, meter.title, terms.association)
    return Result(End.DONE, "renewed") if is_renewed(party, terms, meter, place) else None


def _renew(party: Party, terms: Terms, meters: Sequence[CampaignMeter]) -> dict[bytes, Result]:
    if not meters:
        return {}
    names = [meter.title for meter in meters]
    step = renew if terms.by == METHODS[0] else agree.renew_by_agreement
    try:
        outcomes = step(party, names, terms.roles, terms.association)
    except (TokenRefusedError, PolicyError) as error:
        return {meter.system_title: Result(End.FAILED, _text(error.message)) for meter in meters}
    return {bytes.fromhex(item.system_title): _result(item) for item in outcomes}


def is_renewed(party: Party, terms: Terms, meter: CampaignMeter, place: Place) -> bool:
    """Tell whether every key asked for is another one than when the campaign was made, and in force.

    A key keeps its identity when it is copied into the next generation. Keys that the meter shares with a broadcast
    group are the group's to renew.
    """
    title = meter.system_title
    with party.store.read() as tx:
        now = key_sets.active(tx, title, *place)
        if now is None or now.ref.generation <= meter.above:
            return False
        if meter.above not in key_sets.generations(tx, title, *place):
            return True  # the keys of then were destroyed, and every key set since is another one
        before = key_sets.get(tx, KeySetRef(title, *place, meter.above))
        shared = SHARED_ROLES if groups.own_group_of(tx, title, *place) else ()
    wanted = [role for role in terms.roles if role not in shared]
    return all(now.has(role) and identity_of(before, role) != now.key(role).identity for role in wanted)


def _is_open(party: Party, meter: CampaignMeter, place: Place) -> bool:
    """Tell whether a renewal did not end, or a concentrator was not told of its end."""
    with party.store.read() as tx:
        open_ones = [item.place for item in renewals.unfinished(tx, meter.system_title)]
        owed = [owed_at(item, place) for item in owed_activations(tx, meter.system_title)]
    return place in (*open_ones, *owed)


def _place(party: Party, terms: Terms, meter: CampaignMeter) -> Place:
    model = find_meter(party, meter.title).model
    return load_model(model, party.home).association(terms.association).place


def _result(outcome: Outcome) -> Result:
    return Result(_end(outcome.error, outcome.state), _text(outcome.detail or outcome.state))


def _end(error: HsmkmError | None, state: str) -> End:
    if error is None:
        return End.DONE
    if isinstance(error, HeldError):
        return End.BUSY
    in_doubt = isinstance(error, InDoubtError) or state in ("unknown", "active")
    return End.UNKNOWN if in_doubt else End.FAILED


def _text(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."
