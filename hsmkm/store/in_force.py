"""Which generation of its keys a meter holds, where none of them is active any more."""

from __future__ import annotations

from hsmkm.store import key_sets, key_states, renewals
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState
from hsmkm.store.renewals import RenewalState
from hsmkm.store.store import Transaction


def in_meter(tx: Transaction, system_title: bytes, security_setup: int, client: int) -> KeySet | None:
    """Give the active generation, the suspended one, or the compromised one that was in force last."""
    place = system_title, security_setup, client
    return key_sets.active(tx, *place) or _newest(tx, place, KeyState.SUSPENDED, set()) or compromised(tx, *place)


def compromised(tx: Transaction, system_title: bytes, security_setup: int, client: int) -> KeySet | None:
    """Give the newest compromised generation, without those that a renewal made and never put in force."""
    never = {
        item.to_generation
        for item in renewals.listing(tx, system_title)
        if item.place == (security_setup, client)
        and item.to_generation > item.from_generation
        and item.state is not RenewalState.ACTIVE
    }
    return _newest(tx, (system_title, security_setup, client), KeyState.COMPROMISED, never)


def _newest(tx: Transaction, place: tuple[bytes, int, int], state: KeyState, without: set[int]) -> KeySet | None:
    for generation in reversed(key_sets.generations(tx, *place)):
        ref = KeySetRef(*place, generation)
        if generation not in without and key_states.state(tx, ref) is state:
            return key_sets.get(tx, ref)
    return None
