"""Goes on with a store that lost its newest time: every number that is given from then on is above every one before.

How much was lost, the anchor knows: how many changes, how far any counter went in them at most, and what any reached.
Where the anchor is gone, the bound is what the policy believes of a meter at once. Keys made in the lost time are gone;
nothing here brings them back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Column, func, select

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store import counters, schema, state
from hsmkm.store.anchor import Anchored, digest
from hsmkm.store.canonical import Value
from hsmkm.store.state import StoreState
from hsmkm.store.store import Transaction
from hsmkm.store.times import to_seconds

UNKNOWN_GENERATIONS = 4_000
"""How many generations a meter can have got in a time that nobody knows of: more than any meter is renewed in years."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What a store lost: its last change, the anchor's (-1: it is gone), and bounds on what happened in between."""

    advance: int
    anchor: int
    changes: int
    counter_jump: int
    counter_highest: int


def loss(found: StoreState, anchored: Anchored | None, unknown: int) -> Loss:
    """Compare a store with its anchor; `unknown` bounds what is not known.

    Raises RefusedError where nothing was lost, IntegrityError where the anchor is another store's.
    """
    if anchored is None:
        return Loss(found.advance, -1, unknown, unknown, found.counter_highest + unknown)
    if anchored.instance != found.instance:
        raise IntegrityError("the store is another one than its anchor knows", hint="put its own database in place")
    highest = max(found.counter_highest, anchored.counter_highest)
    if found.advance < anchored.advance:
        jump = max(anchored.counter_reach - found.counter_reach, 0)
        return Loss(found.advance, anchored.advance, anchored.advance - found.advance, jump, highest)
    if found.advance == anchored.advance and digest(found) != anchored.digest:
        return Loss(found.advance, anchored.advance, anchored.advance, anchored.counter_reach, highest)
    raise RefusedError("the store is as new as its anchor", hint="there is nothing to recover: go on")


def recover(tx: Transaction, lost: Loss) -> tuple[int, list[bytes]]:
    """Begin a new epoch above all that was lost; how many counters were raised, and the keys whose are spent."""
    before, generations = tx.before, lost.changes if lost.anchor >= 0 else min(lost.changes, UNKNOWN_GENERATIONS)
    if before is None or before.advance != lost.advance:
        raise RefusedError("the store was changed meanwhile", hint="stop its other processes, and begin again")
    counted = counters.recover(tx, lost.counter_jump, lost.counter_highest)
    number, instance = tx.connection.scalar(select(func.max(schema.epoch.c.number))) or 0, before.instance
    values: dict[str, Value] = {"number": number + 1, "instance": instance, "started": to_seconds(tx.now)}
    tx.insert(schema.epoch, values)
    sequences = (schema.packages.c.sequence, schema.revocation_lists.c.number)
    known = (schema.key_sets.c.generation, schema.key_states.c.generation)
    tx.before = replace(
        before,
        epochs=state.epochs(tx)[1],
        advance=max(lost.advance, lost.anchor),
        counter_offset=min(before.counter_offset + lost.counter_jump, lost.counter_highest),
        sequence_floor=max(before.sequence_floor, *_highest(tx, sequences)) + lost.changes,
        generation_floor=max(before.generation_floor, *_highest(tx, known)) + generations,
    )
    return counted


def _highest(tx: Transaction, columns: tuple[Column[Any], ...]) -> list[int]:
    return [tx.connection.scalar(select(func.max(column))) or 0 for column in columns]
