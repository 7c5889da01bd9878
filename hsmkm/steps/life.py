"""The life of a meter's keys once they are in force: compromised, suspended, taken up again, given to another place.

Nothing here speaks with a meter. A compromise is recorded whoever is speaking with it at that moment, and their work
ends in keys that are compromised too; everything else waits until nobody does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from hsmkm.config import load_model
from hsmkm.errors import InputError, RefusedError
from hsmkm.steps.communicate import LEASE_SECONDS, find_meter, is_gone, this_process
from hsmkm.steps.credentials import secret_roles
from hsmkm.steps.group_members import leave
from hsmkm.steps.notices import owe, tell
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.register import register
from hsmkm.steps.renew import GLOBAL_KEYS, failing
from hsmkm.steps.resting import refuse_resting
from hsmkm.steps.results import Outcome
from hsmkm.store import groups, in_force, key_sets, key_states, leases, meters, parties, renewals, urgent
from hsmkm.store.groups import MemberState, Renewal
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState
from hsmkm.store.meter import Meter, MeterState
from hsmkm.store.store import Transaction
from hsmkm.token.types import KeyRole, MeterRole

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
    left = sorted({role.value for item in lost for role in _unchangeable(party, meter, item)})
    detail = f"{len(lost)} key set(s) wait for hsmkm renew --urgent"
    detail += f"; {', '.join(left)} cannot be changed over DLMS" if left else ""
    return _said(meter, KeyState.COMPROMISED.value, [item.ref for item in lost], detail)


def leave_groups(tx: Transaction, meter: Meter, why: Renewal) -> None:
    """Take a meter out of the broadcast groups of ours that it is in."""
    for member in groups.places(tx, meter.system_title):
        if member.state is MemberState.MEMBER and "/" not in member.group:
            leave(tx, member, why)


def in_meter(tx: Transaction, meter: Meter) -> list[KeySet]:
    """Give the generation that a meter holds in each of its associations."""
    places = {(item.ref.security_setup, item.ref.client) for item, _ in key_sets.for_meter(tx, meter.system_title)}
    found = (in_force.in_meter(tx, meter.system_title, *place) for place in sorted(places))
    return [key_set for key_set in found if key_set is not None]


def ask(tx: Transaction, party: Party, meter: Meter, key_set: KeySet, reason: str) -> None:
    """Queue the renewal of all keys of a set that can be replaced over DLMS."""
    ref = key_set.ref
    urgent.queue(tx, ref.system_title, ref.security_setup, ref.client, reason, replaceable(party, meter, key_set))


def replaceable(party: Party, meter: Meter, key_set: KeySet) -> tuple[MeterRole, ...]:
    """Name the keys of a set that can be replaced over DLMS; where the model is not known here, the global ones."""
    try:
        model = load_model(meter.model, party.home).at((key_set.ref.security_setup, key_set.ref.client))
    except (InputError, RefusedError):
        return tuple(role for role in GLOBAL_KEYS if key_set.has(role))
    master = (KeyRole.MASTER,) if model.key_transfer.master_changeable else ()
    return tuple(role for role in (*GLOBAL_KEYS, *master, *secret_roles(model)) if key_set.has(role))


def _unchangeable(party: Party, meter: Meter, key_set: KeySet) -> list[MeterRole]:
    known = replaceable(party, meter, key_set)
    return [key.role for key in key_set.keys if key.role not in known]


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


def move(tx: Transaction, meter: Meter, present: KeyState, to: KeyState) -> list[KeySetRef]:
    """Move all key sets of a meter that are in one state to another."""
    refs = [key_set.ref for key_set, state in key_sets.for_meter(tx, meter.system_title) if state is present]
    for ref in refs:
        key_states.transition(tx, ref, to)
    return refs


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


@contextmanager
def quiet(tx: Transaction, meter: Meter) -> Iterator[None]:
    """See that nobody speaks with the meter; RefusedError while somebody does."""
    lease = leases.acquire(tx, meter.system_title, this_process(), LEASE_SECONDS, utc_now(), is_gone)
    yield
    leases.release(tx, lease)


def _said(meter: Meter, state: str, refs: Sequence[KeySetRef], detail: str) -> Outcome:
    return Outcome(meter.title, state, max((ref.generation for ref in refs), default=0), detail)
