"""The life of a meter's keys once they are in force: compromised, suspended, taken up again, given to another place.

Nothing here speaks with a meter. A compromise is recorded whoever is speaking with it at that moment, and their work
ends in keys that are compromised too; everything else waits until nobody does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hsmkm.errors import RefusedError
from hsmkm.steps.communicate import find_meter
from hsmkm.steps.notices import owe
from hsmkm.steps.party import Party
from hsmkm.steps.register import register
from hsmkm.steps.renew import failing
from hsmkm.steps.replaceable import ask, unchangeable
from hsmkm.steps.resting import refuse_resting
from hsmkm.steps.results import Outcome
from hsmkm.steps.tell import tell
from hsmkm.steps.turning import in_meter, leave_groups, move, quiet
from hsmkm.store import key_sets, key_states, meters, parties, renewals
from hsmkm.store.groups import Renewal
from hsmkm.store.key_set import KeySetRef, KeyState
from hsmkm.store.meter import Meter, MeterState

GONE = (MeterState.TRANSFERRED, MeterState.DESTROYED)


def compromise(party: Party, names: Sequence[str], reason: str) -> list[Outcome]:
    """Declare that somebody knows all keys of these meters, which are to be replaced before all else.

    Every generation that is stored becomes compromised, in every association; the meters leave their broadcast groups,
    which broadcast nothing until they are renewed. A renewal that is under way ends in keys that are compromised too.
    """
    return _each(party, names, lambda name: _compromise(party, find_meter(party, name), reason))


def _compromise(party: Party, meter: Meter, reason: str) -> Outcome:
    if meter.at_rest in GONE:
        raise RefusedError(f"meter {meter.title} is {meter.at_rest}: its keys are not ours to replace")
    with party.store.begin("meter-compromise", meter.title, {"reason": reason}) as tx:
        owe(tx, meter, KeyState.COMPROMISED)
        leave_groups(tx, meter, Renewal.COMPROMISED)
        for key_set, state in key_sets.for_meter(tx, meter.system_title):
            if KeyState.COMPROMISED in key_states.EDGES[state]:
                key_states.transition(tx, key_set.ref, KeyState.COMPROMISED)
        lost = in_meter(tx, meter)
        for key_set in lost:
            ask(tx, party, meter, key_set, f"compromised: {reason}")
    left = sorted({role.value for item in lost for role in unchangeable(party, meter, item)})
    detail = f"{len(lost)} key set(s) wait for hsmkm renew --urgent"
    detail += f"; {', '.join(left)} cannot be changed over DLMS" if left else ""
    return _said(meter, KeyState.COMPROMISED.value, [item.ref for item in lost], detail)


def suspend(party: Party, names: Sequence[str]) -> list[Outcome]:
    """Take meters out of use: nothing is spoken with them, and their concentrators are told, until they are resumed."""
    return _each(party, names, lambda name: _suspend(party, find_meter(party, name)))


def _suspend(party: Party, meter: Meter) -> Outcome:
    refuse_resting(meter)
    with party.store.begin("meter-suspend", meter.title, {}) as tx, quiet(tx, meter):
        owe(tx, meter, KeyState.SUSPENDED)
        moved = move(tx, meter, KeyState.ACTIVE, KeyState.SUSPENDED)
        meters.update(tx, replace(meters.require(tx, meter.system_title), state=MeterState.SUSPENDED.value))
    return _said(meter, MeterState.SUSPENDED.value, moved, "nothing is spoken with it until hsmkm meter resume")


def resume(party: Party, names: Sequence[str]) -> list[Outcome]:
    """Take suspended meters up again; what was declared compromised meanwhile stays so."""
    return _each(party, names, lambda name: _resume(party, find_meter(party, name)))


def _resume(party: Party, meter: Meter) -> Outcome:
    if meter.at_rest is not MeterState.SUSPENDED:
        raise RefusedError(f"meter {meter.title} is not suspended", hint="see: hsmkm meter show")
    with party.store.begin("meter-resume", meter.title, {}) as tx, quiet(tx, meter):
        moved = move(tx, meter, KeyState.SUSPENDED, KeyState.ACTIVE)
        if moved:
            owe(tx, meter, KeyState.ACTIVE)
        meters.update(tx, replace(meters.require(tx, meter.system_title), state=None))
    detail = "in use again" if moved else "in use again; no keys of it are in force"
    return _said(meter, "resumed", moved, detail)


def reassign(party: Party, places: Sequence[tuple[str, str]], concentrator: str, wait: int) -> list[Outcome]:
    """Put registered meters, each (name, address), behind another concentrator; the former one knows nothing current.

    It is told that they left, without waiting for its receipt. All that it was given is asked to be replaced before
    the new one is given anything, and replaced when the meter was reached through the new one.
    """
    outcomes: list[Outcome] = []
    movable: list[tuple[str, str]] = []
    for name, address in places:
        with failing(outcomes, name):
            _refuse_unmovable(party, find_meter(party, name), concentrator)
            movable.append((name, address))
    return outcomes + register(party, movable, concentrator, wait)


def _refuse_unmovable(party: Party, meter: Meter, concentrator: str) -> None:
    refuse_resting(meter)
    with party.store.read() as tx:
        parties.require(tx, concentrator)
        open_ones = renewals.unfinished(tx, meter.system_title)
    if meter.concentrator in (None, concentrator):
        where = f"behind {concentrator} already" if meter.concentrator else "behind no concentrator"
        raise RefusedError(f"meter {meter.title} is {where}", hint="hsmkm meter register")
    if open_ones:
        text = f"renewal {open_ones[-1].id} of {meter.title} is not finished"
        raise RefusedError(text, hint=f"finish it with: hsmkm resolve {meter.title}")


def _each(party: Party, names: Sequence[str], change: Callable[[str], Outcome]) -> list[Outcome]:
    """Change each meter and tell the concentrators; a meter that fails stops no other."""
    outcomes: list[Outcome] = []
    for name in dict.fromkeys(names):
        with failing(outcomes, name):
            outcomes.append(change(name))
    with failing(outcomes, party.settings.party.name):
        tell(party)
    return outcomes


def _said(meter: Meter, state: str, refs: Sequence[KeySetRef], detail: str) -> Outcome:
    return Outcome(meter.title, state, max((ref.generation for ref in refs), default=0), detail)
