"""What concentrators are to be told of meters that they were given: suspended, taken up again, compromised, withdrawn.

That a notice is owed is recorded with the change itself, so that a crash does not forget it; `hsmkm.steps.tell` sends
it.
"""

from __future__ import annotations

from hsmkm.store import holders, in_force, intents, key_sets, urgent
from hsmkm.store.key_set import KeySetRef, KeyState
from hsmkm.store.meter import Meter
from hsmkm.store.store import Transaction

NOTICE = "notice"


def owe(tx: Transaction, meter: Meter, state: KeyState) -> None:
    """Record that a meter's concentrator is to be told of the state of the keys that it was given.

    A withdrawal (`deactivated`) is told to a concentrator without keys too.
    """
    to = meter.concentrator
    if not to:
        return
    given = [ref for ref in _in_meter(tx, meter) if _was_given(tx, ref, to)]
    for ref in given:
        place = {"security_setup": ref.security_setup, "client": ref.client, "generation": ref.generation}
        intents.open(tx, meter.system_title, NOTICE, {"to": to, "state": state.value, "keys": True, **place})
    if not given and state is KeyState.DEACTIVATED:
        place = {"security_setup": 0, "client": 0, "generation": 0}
        intents.open(tx, meter.system_title, NOTICE, {"to": to, "state": state.value, "keys": False, **place})


def leave_concentrator(tx: Transaction, meter: Meter) -> None:
    """Take a meter from its concentrator: that is told, and what it knows is replaced before all else."""
    former = meter.concentrator or ""
    owe(tx, meter, KeyState.DEACTIVATED)
    for ref in _in_meter(tx, meter):
        keys = key_sets.get(tx, ref).keys
        known = tuple(key.role for key in keys if former in _holders(tx, key.identity))
        if known:
            place = meter.system_title, ref.security_setup, ref.client
            urgent.queue(tx, *place, f"concentrator {former} knows them", known)


def _holders(tx: Transaction, identity: bytes) -> set[str]:
    return {item.party for item in holders.for_key(tx, identity)}


def _in_meter(tx: Transaction, meter: Meter) -> list[KeySetRef]:
    refs = (key_set.ref for key_set, _ in key_sets.for_meter(tx, meter.system_title))
    places = sorted({(ref.security_setup, ref.client) for ref in refs})
    found = (in_force.in_meter(tx, meter.system_title, *place) for place in places)
    return [key_set.ref for key_set in found if key_set is not None]


def _was_given(tx: Transaction, ref: KeySetRef, party: str) -> bool:
    given = (item for key in key_sets.get(tx, ref).keys for item in holders.for_key(tx, key.identity))
    return any((item.party, item.ref) == (party, ref) for item in given)
