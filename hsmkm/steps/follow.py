"""What a package says of the state of keys that are held here, done within the transaction that takes the package.

A concentrator learns from its AIM which generation is in force, and that a meter is suspended, taken up again, in
unauthorised hands, or another concentrator's from now on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hsmkm.packages.arrivals import Received
from hsmkm.packages.content import MeterEntry, Purpose
from hsmkm.store import key_sets, key_states, meters
from hsmkm.store.key_set import KeySetRef, KeyState
from hsmkm.store.meter import MeterState
from hsmkm.store.store import Transaction

USABLE = (KeyState.PRE_ACTIVE, KeyState.ACTIVE)
LIVING = (KeyState.PRE_ACTIVE, KeyState.ACTIVE, KeyState.SUSPENDED, KeyState.DEACTIVATED)


def follow(tx: Transaction, item: Received, purpose: Purpose) -> None:
    """Take a meter's new address from its AIM, and bring the generation into the state that the package says."""
    entry = item.entry
    if purpose is Purpose.DELIVERY and entry.state != KeyState.ACTIVE.value:
        return
    ref = KeySetRef(entry.system_title, entry.security_setup, entry.client, entry.generation)
    if purpose is Purpose.DISTRIBUTION:
        _distributed(tx, entry)
    if purpose is Purpose.ACTIVATION:
        _ORDERS.get(KeyState(entry.state), _nothing)(tx, ref)
    elif entry.state == KeyState.ACTIVE.value and _is_held(tx, ref) and key_states.state(tx, ref) in USABLE:
        put_in_force(tx, ref)


def _is_held(tx: Transaction, ref: KeySetRef) -> bool:
    return ref.generation in key_sets.generations(tx, ref.system_title, ref.security_setup, ref.client)


def put_in_force(tx: Transaction, ref: KeySetRef) -> None:
    """Activate a generation and deactivate those before it; nothing changes where a newer one is in force already.

    Raises RefusedError where there is no such generation.
    """
    state = key_states.state(tx, ref)
    generations = key_sets.generations(tx, ref.system_title, ref.security_setup, ref.client)
    others = [replace(ref, generation=generation) for generation in generations if generation != ref.generation]
    active = [other for other in others if key_states.state(tx, other) is KeyState.ACTIVE]
    if any(other.generation > ref.generation for other in active):
        return
    if state is not KeyState.ACTIVE:
        key_states.transition(tx, ref, KeyState.ACTIVE)
    for other in active:
        key_states.transition(tx, other, KeyState.DEACTIVATED)


def _distributed(tx: Transaction, entry: MeterEntry) -> None:
    known = meters.require(tx, entry.system_title)
    if entry.state == KeyState.DEACTIVATED.value and not entry.keys:
        _withdraw(tx, KeySetRef(entry.system_title, entry.security_setup, entry.client, entry.generation))
        return
    state = None if known.at_rest is MeterState.WITHDRAWN else known.state
    taken = replace(known, address=entry.address or known.address, state=state)
    if taken != known:
        meters.update(tx, taken)


def _activate(tx: Transaction, ref: KeySetRef) -> None:
    _rest(tx, ref, None)
    put_in_force(tx, ref)


def _suspend(tx: Transaction, ref: KeySetRef) -> None:
    _rest(tx, ref, MeterState.SUSPENDED)
    if key_states.state(tx, ref) is KeyState.ACTIVE:
        key_states.transition(tx, ref, KeyState.SUSPENDED)


def _withdraw(tx: Transaction, ref: KeySetRef) -> None:
    """Give a meter up: its address is forgotten, and no generation of these keys is in force."""
    _rest(tx, ref, MeterState.WITHDRAWN)
    for other in _held(tx, ref):
        if key_states.state(tx, other) in (KeyState.ACTIVE, KeyState.SUSPENDED):
            key_states.transition(tx, other, KeyState.DEACTIVATED)


def _compromise(tx: Transaction, ref: KeySetRef) -> None:
    for other in _held(tx, ref):
        if other.generation <= ref.generation and key_states.state(tx, other) in LIVING:
            key_states.transition(tx, other, KeyState.COMPROMISED)


def _nothing(_tx: Transaction, _ref: KeySetRef) -> None:
    """Leave the state as it is."""


_ORDERS: Mapping[KeyState, Callable[[Transaction, KeySetRef], None]] = {
    KeyState.ACTIVE: _activate,
    KeyState.SUSPENDED: _suspend,
    KeyState.DEACTIVATED: _withdraw,
    KeyState.COMPROMISED: _compromise,
}


def _rest(tx: Transaction, ref: KeySetRef, state: MeterState | None) -> None:
    known = meters.require(tx, ref.system_title)
    address = None if state is MeterState.WITHDRAWN else known.address
    resting = replace(known, state=state.value if state else None, address=address)
    if resting != known:
        meters.update(tx, resting)


def _held(tx: Transaction, ref: KeySetRef) -> list[KeySetRef]:
    generations = key_sets.generations(tx, ref.system_title, ref.security_setup, ref.client)
    return [replace(ref, generation=generation) for generation in generations]
