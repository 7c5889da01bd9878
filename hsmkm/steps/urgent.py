"""Works off the urgent renewals: what somebody knows and must not is replaced before anything else is renewed.

A meter whose last renewal did not end is resolved first, and renewed from what it was found to hold. What a meter
shares with a broadcast group is replaced by the group's own renewal.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from hsmkm.config import load_model
from hsmkm.errors import PartlyDoneError
from hsmkm.steps import group_renew
from hsmkm.steps.communicate import find_meter
from hsmkm.steps.party import Party
from hsmkm.steps.renew import RECEIPT_SECONDS, failing, renew
from hsmkm.steps.resolve import resolve
from hsmkm.steps.results import Outcome
from hsmkm.steps.tell import tell
from hsmkm.store import groups, renewals, urgent
from hsmkm.store.groups import SHARED_ROLES
from hsmkm.store.urgent import Urgent
from hsmkm.token.types import MeterRole


@dataclass(slots=True)
class _Queue:
    """What is to be done: groups by name, and meters by the association and the keys that are renewed together."""

    groups: dict[str, None] = field(default_factory=dict)
    meters: defaultdict[tuple[str, tuple[MeterRole, ...]], list[str]] = field(default_factory=lambda: defaultdict(list))


def renew_urgent(party: Party, *, wait: int = RECEIPT_SECONDS) -> list[Outcome]:
    """Renew all that is waiting, oldest first; what fails has its error in its outcome, and stays waiting."""
    outcomes: list[Outcome] = []
    queue = _Queue()
    with party.store.read() as tx:
        asked = urgent.waiting(tx)
    for item in asked:
        with failing(outcomes, item.title):
            _sort(party, queue, item)
    for (association, roles), titles in queue.meters.items():
        outcomes += renew(party, titles, roles, association, wait=wait)
    for name in queue.groups:
        with failing(outcomes, name):
            outcomes += _renew_group(party, name, wait)
    with failing(outcomes, party.settings.party.name):
        tell(party)
    return outcomes


def _sort(party: Party, queue: _Queue, item: Urgent) -> None:
    """Put one entry where it is worked on, after finding out what the meter holds where that is not known."""
    if item.group:
        queue.groups[item.group] = None
        return
    meter = find_meter(party, item.title)
    association = load_model(meter.model, party.home).at(item.place).association_name
    with party.store.read() as tx:
        in_doubt = any(one.place == item.place for one in renewals.unfinished(tx, item.system_title))
        group = groups.own_group_of(tx, item.system_title, *item.place)
    if in_doubt:
        resolve(party, item.title, association, go_on=False)
    shared = tuple(role for role in item.roles if role in SHARED_ROLES) if group else ()
    if shared:
        queue.groups[group] = None
    own = tuple(role for role in item.roles if role not in shared)
    if own:
        queue.meters[association, own].append(item.title)


def _renew_group(party: Party, name: str, wait: int) -> tuple[Outcome, ...]:
    done = group_renew.renew(party, name, wait=wait)
    if done.switched:
        return done.outcomes
    error = PartlyDoneError(
        f"group {name} has not switched: {len(done.overview.waiting)} members lack the next keys",
        hint=f"hsmkm group show {name}; then hsmkm group renew {name} again, or leave members out with --without",
    )
    return (*done.outcomes, Outcome(name, "failed", 0, error.message, error))
