"""Puts a generation in force, and sees that no key that somebody knows comes along with it.

A compromised generation may carry the key_transfer that replaces it, and nothing else. What waits for an urgent renewal
says which of its keys are to be replaced: a generation that still has one of them is not put in force.
"""

from __future__ import annotations

from hsmkm.errors import RefusedError
from hsmkm.store import key_states, urgent
from hsmkm.store.key_set import KeySet, KeySetRef
from hsmkm.store.key_states import KeyState
from hsmkm.store.store import Transaction
from hsmkm.token.types import MeterRole


def refuse_part(tx: Transaction, current: KeySet, roles: tuple[MeterRole, ...]) -> None:
    """Raise RefusedError where a renewal would carry keys that somebody knows on into a generation that is active."""
    ref = current.ref
    if not ref.generation or key_states.state(tx, ref) is not KeyState.COMPROMISED:
        return
    left = _asked(tx, ref).difference(roles)
    if left:
        named = ", ".join(sorted(role.value for role in left))
        raise RefusedError(
            f"the keys of meter {ref.system_title.hex().upper()} are compromised: replace {named} in the same renewal",
            hint="replace all of them with: hsmkm renew --urgent",
        )


def switch(tx: Transaction, current: KeySet, fresh: KeySet) -> bool:
    """Activate a generation and deactivate the one before; generation 0 is the model's and keeps its state.

    What is compromised stays so, and with it what carries on a key that was to be replaced: False where that is the
    fresh one.
    """
    held = current.ref.generation > 0 and current.ref != fresh.ref
    lost = held and key_states.state(tx, current.ref) is KeyState.COMPROMISED
    usable = key_states.state(tx, fresh.ref) is not KeyState.COMPROMISED
    if usable and lost and any(_carries(current, fresh, role) for role in _asked(tx, current.ref)):
        key_states.transition(tx, fresh.ref, KeyState.COMPROMISED)
        usable = False
    if usable and fresh.state is not KeyState.ACTIVE:
        key_states.transition(tx, fresh.ref, KeyState.ACTIVE)
    if held and not lost:
        key_states.transition(tx, current.ref, KeyState.DEACTIVATED)
    return usable


def _carries(current: KeySet, fresh: KeySet, role: MeterRole) -> bool:
    return current.has(role) and fresh.has(role) and current.key(role).identity == fresh.key(role).identity


def _asked(tx: Transaction, ref: KeySetRef) -> set[MeterRole]:
    """Name the keys of this place that wait for an urgent renewal."""
    place = (ref.security_setup, ref.client)
    return {role for item in urgent.of_meter(tx, ref.system_title) if item.place == place for role in item.roles}
