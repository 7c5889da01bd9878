"""Parts of every turn in a meter's life, each within the transaction of that turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hsmkm.steps.communicate import is_gone, this_process
from hsmkm.steps.group_members import leave
from hsmkm.steps.party import utc_now
from hsmkm.steps.stored_counters import LEASE_SECONDS
from hsmkm.store import groups, in_force, key_sets, key_states, leases
from hsmkm.store.groups import MemberState, Renewal
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState
from hsmkm.store.meter import Meter
from hsmkm.store.store import Transaction


@contextmanager
def quiet(tx: Transaction, meter: Meter) -> Iterator[None]:
    """See that nobody speaks with the meter; RefusedError while somebody does."""
    lease = leases.acquire(tx, meter.system_title, this_process(), LEASE_SECONDS, utc_now(), is_gone)
    yield
    leases.release(tx, lease)


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


def move(tx: Transaction, meter: Meter, present: KeyState, to: KeyState) -> list[KeySetRef]:
    """Move all key sets of a meter that are in one state to another."""
    refs = [key_set.ref for key_set, state in key_sets.for_meter(tx, meter.system_title) if state is present]
    for ref in refs:
        key_states.transition(tx, ref, to)
    return refs
