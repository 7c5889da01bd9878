"""Where a key set is in its life, and the only ways on (NIST SP 800-57 part 1 rev. 5, section 7):

    pre-active   -> active, compromised, destroyed
    active       -> suspended, deactivated, compromised, destroyed
    suspended    -> active, deactivated, compromised, destroyed
    deactivated  -> compromised, destroyed
    compromised  -> destroyed
    destroyed    -> (nothing)

The first state is covered by the key set's own MAC; from the first transition on a row with a MAC of its own says it.
"""  # noqa: D400 - the table belongs to the sentence

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hsmkm.errors import RefusedError
from hsmkm.store import key_set_rows
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.canonical import Value
from hsmkm.store.cells import altered
from hsmkm.store.key_set import STATE_NUMBERS, STATES, KeySetRef, KeyState
from hsmkm.store.pages import rows_of
from hsmkm.store.schema import key_states as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import to_seconds

__all__ = ["EDGES", "ROWS", "KeyState", "destroyed", "recorded", "recorded_of", "state", "transition"]

EDGES: Mapping[KeyState, frozenset[KeyState]] = {
    KeyState.PRE_ACTIVE: frozenset({KeyState.ACTIVE, KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.ACTIVE: frozenset({KeyState.SUSPENDED, KeyState.DEACTIVATED, KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.SUSPENDED: frozenset({KeyState.ACTIVE, KeyState.DEACTIVATED, KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.DEACTIVATED: frozenset({KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.COMPROMISED: frozenset({KeyState.DESTROYED}),
    KeyState.DESTROYED: frozenset(),
}

ROWS = AuthenticatedTable("hsmkm key state/1", table, key_set_rows.KEY, (*key_set_rows.KEY, "state", "changed"))


def state(tx: Transaction, ref: KeySetRef) -> KeyState:
    """Return a key set's state; raises RefusedError if there is no such set, IntegrityError if a row was altered."""
    row = _row(tx, ref)
    return key_set_rows.fetch(tx, ref).state if row is None else _state(row)


def recorded(tx: Transaction, ref: KeySetRef) -> KeyState | None:
    """Return the state that a transition recorded, or nothing while the set is in its first state."""
    row = _row(tx, ref)
    return None if row is None else _state(row)


def recorded_of(tx: Transaction, titles: Sequence[bytes]) -> dict[KeySetRef, KeyState]:
    """Return the states that transitions recorded of all key sets of these meters."""
    found: dict[KeySetRef, KeyState] = {}
    for row in rows_of(tx, ROWS.everything(), table, titles):
        ROWS.verify(tx, row)
        found[key_set_rows.ref(row)] = _state(row)
    return found


def destroyed(tx: Transaction, system_title: bytes) -> list[KeySetRef]:
    """List the generations of a meter whose keys were destroyed, oldest first."""
    statement = ROWS.everything().where(
        table.c.system_title == system_title, table.c.state == STATE_NUMBERS[KeyState.DESTROYED]
    )
    return [KeySetRef(*(row[name] for name in key_set_rows.KEY)) for row in ROWS.rows(tx, statement)]


def transition(tx: Transaction, ref: KeySetRef, to: KeyState) -> None:
    """Move a key set to another state; raises RefusedError where the table has no such edge."""
    row = _row(tx, ref)
    present = key_set_rows.fetch(tx, ref).state if row is None else _state(row)
    if to not in EDGES[present]:
        raise RefusedError(f"key set {ref} is {present} and cannot become {to}")
    changes: dict[str, Value] = {"state": STATE_NUMBERS[to], "changed": to_seconds(tx.now)}
    if row is None:
        ROWS.insert(tx, _key(ref) | changes)
    else:
        ROWS.replace(tx, row, changes)


def _row(tx: Transaction, ref: KeySetRef) -> StoredRow | None:
    return ROWS.fetch(tx, **_key(ref))


def _state(row: StoredRow) -> KeyState:
    number: int = row["state"]
    if not 0 <= number < len(STATES):
        raise altered(ROWS.name(row))
    return STATES[number]


def _key(ref: KeySetRef) -> dict[str, Value]:
    return {name: getattr(ref, name) for name in key_set_rows.KEY}
