"""Key sets: stored once, verified at every reading; only the state and the date of destruction ever change.

How one comes into the store, together with its meter:

    key_set = key_sets.authenticate(vault, KeySet(ref, suite, storage_key, KeyState.PRE_ACTIVE, keys), meter)
    with store.begin("meter provision", order, {}) as tx:
        meters.add(tx, meter)
        key_sets.add(tx, key_set)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select

from hsmkm.errors import IntegrityError, PolicyError, RefusedError
from hsmkm.store import key_set_rows, key_states, meters, schema
from hsmkm.store.canonical import Value
from hsmkm.store.engine import Row
from hsmkm.store.key_set import (
    MAX_GENERATION_STEP,
    STATE_NUMBERS,
    KeySet,
    KeySetRef,
    KeyState,
    StoredKey,
    authenticate,
    pack,
    verify,
)
from hsmkm.store.key_set import encode_key_set as encode
from hsmkm.store.key_set_bulk import Form
from hsmkm.store.pages import rows_of
from hsmkm.store.schema import key_sets as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import to_seconds

__all__ = [
    "KeySet",
    "KeySetRef",
    "KeyState",
    "StoredKey",
    "active",
    "add",
    "add_bulk",
    "add_many",
    "authenticate",
    "destroy",
    "due",
    "encode",
    "for_meter",
    "for_meters",
    "generations",
    "generations_of",
    "get",
    "newest",
    "next_generation",
    "reseal",
    "set_all_destroy_after",
    "set_destroy_after",
    "verify",
]

PAGE = 500
COLUMNS = (
    "system_title",
    "security_setup",
    "client",
    "generation",
    "suite",
    "storage_key",
    "state",
    "keys",
    "mac_key",
    "mac",
    "batch",
    "destroy_after",
)

FURTHEST = MAX_GENERATION_STEP - 1_000
"""How far a generation rises at most, whatever was lost: others may know of a few less than we do."""


def add(tx: Transaction, key_set: KeySet) -> None:
    """Store a key set that was authenticated; raises RefusedError if its place is taken or it has no MAC."""
    add_many(tx, [key_set])


def add_many(tx: Transaction, rows: Iterable[KeySet]) -> int:
    """Store key sets in bulk, sorted by their reference for speed, and return how many they were.

    They are not verified here: whoever made them made their MACs. All are inserted, or none (RefusedError).
    """
    return tx.insert_rows(table, COLUMNS, [_row(tx, key_set) for key_set in rows])


def add_bulk(tx: Transaction, form: Form, keys: tuple[int, int], sets: Sequence[tuple[bytes, bytes, bytes]]) -> int:
    """Store new key sets of a form, each (system title, keys as `Form` stores them, MAC); return how many they were.

    `keys` are the numbers of the storage key and of the integrity key. All are inserted, or none (RefusedError).
    """
    if tx.authenticator is None:
        raise PolicyError("a change needs the token")
    storage_key, mac_key = keys
    place = (form.security_setup, form.client, form.generation, form.suite, storage_key, STATE_NUMBERS[form.state])
    tx.effect(b"".join([mac for _, _, mac in sets]))
    return tx.insert_rows(
        table, COLUMNS, [(title, *place, stored, mac_key, mac, tx.sequence, None) for title, stored, mac in sets]
    )


def get(tx: Transaction, ref: KeySetRef) -> KeySet:
    """Read a key set and verify it.

    Raises RefusedError if there is none, IntegrityError if it or its meter was altered, PolicyError without a token.
    """
    return key_set_rows.fetch(tx, ref)


def generations(tx: Transaction, system_title: bytes, security_setup: int, client: int) -> list[int]:
    """List the generations of a meter's key sets for one setup and client, oldest first."""
    return sorted(tx.column(table, "generation", _place(system_title, security_setup, client)))


def newest(tx: Transaction, system_title: bytes, security_setup: int, client: int) -> KeySet | None:
    """Read and verify the newest generation, whatever its state."""
    found = generations(tx, system_title, security_setup, client)
    return get(tx, KeySetRef(system_title, security_setup, client, found[-1])) if found else None


def active(tx: Transaction, system_title: bytes, security_setup: int, client: int) -> KeySet | None:
    """Read and verify the newest generation that is active."""
    for generation in reversed(generations(tx, system_title, security_setup, client)):
        ref = KeySetRef(system_title, security_setup, client, generation)
        if key_states.state(tx, ref) is KeyState.ACTIVE:
            return get(tx, ref)
    return None


def for_meter(tx: Transaction, system_title: bytes) -> list[tuple[KeySet, KeyState]]:
    """List all key sets of a meter with their states; a listing without the token is not verified."""
    sets = [key_set_rows.verified(tx, row) for row in tx.all(_of_meter(system_title))]
    return [(key_set, key_states.recorded(tx, key_set.ref) or key_set.state) for key_set in sets]


def for_meters(tx: Transaction, titles: Sequence[bytes]) -> dict[bytes, list[tuple[KeySet, KeyState]]]:
    """Do the same for many meters, those without key sets left out."""
    states = key_states.recorded_of(tx, titles)
    found: dict[bytes, list[tuple[KeySet, KeyState]]] = defaultdict(list)
    statement = key_set_rows.with_meter().order_by(*(table.c[name] for name in key_set_rows.KEY))
    for row in rows_of(tx, statement, table, titles):
        key_set = key_set_rows.verified(tx, row)
        found[key_set.ref.system_title].append((key_set, states.get(key_set.ref, key_set.state)))
    return found


def generations_of(tx: Transaction, titles: Sequence[bytes]) -> dict[tuple[bytes, int, int], list[int]]:
    """List the generations of many meters by system title, security setup and client, oldest first."""
    found: dict[tuple[bytes, int, int], list[int]] = defaultdict(list)
    columns = (table.c.system_title, table.c.security_setup, table.c.client, table.c.generation)
    for row in rows_of(tx, select(*columns).order_by(table.c.generation), table, titles):
        found[row["system_title"], row["security_setup"], row["client"]].append(row["generation"])
    return found


def set_destroy_after(tx: Transaction, ref: KeySetRef, moment: datetime | None) -> None:
    """Say when this party's copy is due to be destroyed, under the set's MAC; RefusedError if there is no such set."""
    set_all_destroy_after(tx, [ref], moment)


def set_all_destroy_after(tx: Transaction, refs: Iterable[KeySetRef], moment: datetime | None) -> None:
    """Do the same for many sets, meter by meter."""
    ordered = sorted(refs)
    for start in range(0, len(ordered), PAGE):
        page = ordered[start : start + PAGE]
        titles = table.c.system_title.in_({ref.system_title for ref in page})
        rows = {key_set_rows.ref(row): row for row in tx.all(key_set_rows.with_meter().where(titles))}
        for ref in page:
            if ref not in rows:
                raise RefusedError(f"there is no key set {ref}")
        tx.update_macs(table, key_set_rows.KEY, [_dated(tx, rows[ref], moment) for ref in page])


def _dated(tx: Transaction, row: StoredRow, moment: datetime | None) -> tuple[bytes, StoredRow]:
    """Give the MAC of a set, which was verified, and its cells with another date of destruction."""
    if tx.authenticator is None:
        raise PolicyError("a change needs the token")
    found, meter = key_set_rows.verified_with_meter(tx, row)
    dated = authenticate(tx.authenticator, replace(found, destroy_after=moment), meter)
    if dated.mac is None:
        raise IntegrityError(f"key set {dated.ref} carries no mac")
    key = {name: row[name] for name in key_set_rows.KEY}
    made = {"mac_key": dated.mac.key_number, "mac": dated.mac.value, "destroy_after": to_seconds(moment)}
    return row["mac"], key | made


def reseal(tx: Transaction, key_set: KeySet) -> None:
    """Replace the wrapping, the date of destruction and the MAC of a set, which was authenticated.

    Raises RefusedError if there is no such set.
    """
    if key_set.mac is None:
        raise IntegrityError(f"key set {key_set.ref} carries no mac", hint="authenticate it before it is stored")
    ref, mac = key_set.ref, key_set.mac
    key = _place(ref.system_title, ref.security_setup, ref.client) | {"generation": ref.generation}
    sealed: dict[str, Value] = {"storage_key": key_set.storage_key, "keys": pack(key_set.keys)}
    sealed["destroy_after"] = to_seconds(key_set.destroy_after)
    if tx.update(table, key, sealed | {"mac_key": mac.key_number, "mac": mac.value}) != 1:
        raise RefusedError(f"there is no key set {ref}")


def due(tx: Transaction, limit: int) -> list[KeySet]:
    """Read and verify key sets whose day of destruction has come, in the order of their meters."""
    statement = key_set_rows.with_meter().where(table.c.destroy_after <= to_seconds(tx.now))
    rows = tx.all(statement.order_by(*(table.c[name] for name in key_set_rows.KEY)).limit(limit))
    return [key_set_rows.verified(tx, row) for row in rows]


def next_generation(tx: Transaction, system_title: bytes, security_setup: int, client: int) -> int:
    """Return the lowest generation above all that were ever stored here, destroyed ones and lost ones too.

    It rises no further than those believe who know of the meter what we know.
    """
    state = tx.state()
    floor = state.generation_floor if state else 0
    place = _place(system_title, security_setup, client)
    highest = max(tx.highest(rows, "generation", place) for rows in (table, schema.key_states))
    return max(highest, min(floor, highest + FURTHEST)) + 1


def destroy(tx: Transaction, ref: KeySetRef) -> None:
    """Destroy this party's copy: its wrapped keys leave the store, and the state alone stays.

    Raises RefusedError if there is no such set. The last set of a meter leaves the meter's row with a MAC of its own.
    """
    key_states.transition(tx, ref, KeyState.DESTROYED)
    place = _place(ref.system_title, ref.security_setup, ref.client)
    tx.delete(table, place | {"generation": ref.generation})
    if tx.one(select(table.c.generation).where(table.c.system_title == ref.system_title)) is None:
        meters.update(tx, meters.require(tx, ref.system_title))


def _row(tx: Transaction, key_set: KeySet) -> Row:
    if tx.authenticator is None:
        raise PolicyError("a change needs the token")
    if key_set.mac is None:
        raise IntegrityError(f"key set {key_set.ref} carries no mac", hint="authenticate it before it is stored")
    mac = key_set.mac
    ref = key_set.ref
    destroy_after = to_seconds(key_set.destroy_after)
    tx.effect(mac.value if destroy_after is None else mac.value + destroy_after.to_bytes(8, "big"))
    return (
        ref.system_title,
        ref.security_setup,
        ref.client,
        ref.generation,
        key_set.suite,
        key_set.storage_key,
        STATE_NUMBERS[key_set.state],
        pack(key_set.keys),
        mac.key_number,
        mac.value,
        tx.sequence,
        destroy_after,
    )


def _of_meter(system_title: bytes) -> Select[Any]:
    statement = key_set_rows.with_meter().where(table.c.system_title == system_title)
    return statement.order_by(*(table.c[name] for name in key_set_rows.KEY))


def _place(system_title: bytes, security_setup: int, client: int) -> dict[str, bytes | str | int | None]:
    return {"system_title": system_title, "security_setup": security_setup, "client": client}
