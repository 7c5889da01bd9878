"""One row under a MAC that says how far the store is: what every transaction changes and an anchor outside holds.

`advance` is one more with every block (`Store.begin`, `Store.count`) that changes a row under a MAC or appends an audit
record, whether it shares its transaction or not: so it bounds what can have changed in a time that was lost.
Beside it stand the newest audit record, the sums of all tables, and what recovery needs: how far counters went at most,
and the bounds that numbers given after a recovery keep above.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from hsmkm.errors import IntegrityError
from hsmkm.store import schema, statements, sums
from hsmkm.store.canonical import Value, encode
from hsmkm.store.cells import mac_of
from hsmkm.store.schema import store_state as table
from hsmkm.store.sums import Changes, Sum
from hsmkm.token.types import Mac

if TYPE_CHECKING:
    from hsmkm.store.store import StoredRow, Transaction

LABEL = "hsmkm store state/1"
NAME = "store_state"
INSTANCE_OCTETS = 16
FIRST_HASH = bytes(32)
"""What stands in place of the hash of an audit record while there is none."""
SEALING: Mapping[str, frozenset[str]] = {
    "0007": frozenset(),
    "0009": frozenset({"orders", "renewals", "intents", "revocation_lists"}),
    "0011": frozenset({"campaigns"}),
}
"""The schemas that put rows under a MAC which had none, and the tables that got a sum by it.

`hsmkm store upgrade` does it once, with the token.
"""
_ONLY = 1
_NEWEST = select(schema.audit.c.sequence, schema.audit.c.hash).order_by(schema.audit.c.sequence.desc()).limit(1)
_EPOCHS = select(schema.epoch).order_by(schema.epoch.c.number)


@dataclass(frozen=True, slots=True)
class StoreState:
    """The row: `instance` (16 octets) is the store's, `epochs` a digest of all its epochs.

    `schema`: what the newest seal was made for. `counter_reach`: a bound on how far any counter went since the store
    was made; `counter_highest`: a bound on what any counter reached. The last three keep numbers given after a recovery
    above those given before: counters begin so much later, package and CRL numbers and generations are higher.
    """

    instance: bytes
    schema: str
    epochs: bytes
    advance: int = 0
    audit_sequence: int = 0
    audit_hash: bytes = FIRST_HASH
    counter_reach: int = 0
    counter_highest: int = 0
    counter_offset: int = 0
    sequence_floor: int = 0
    generation_floor: int = 0
    sums: Mapping[str, Sum] = field(default_factory=dict)
    mac: Mac = field(default_factory=lambda: Mac(0, b""))

    def after(
        self, changes: Changes, audit: tuple[int, bytes] | None, counters: Mapping[object, tuple[int, int]]
    ) -> StoreState:
        """Give the state after a transaction: its rows, its audit record, and (increase, value reached) by counter."""
        sequence, hash_ = audit or (self.audit_sequence, self.audit_hash)
        return replace(
            self,
            advance=self.advance + 1,
            audit_sequence=sequence,
            audit_hash=hash_,
            counter_reach=self.counter_reach + max((increase for increase, _ in counters.values()), default=0),
            counter_highest=max(self.counter_highest, *(reached for _, reached in counters.values()), 0),
            sums=changes.on(self.sums),
        )

    def values(self) -> dict[str, Value]:
        """Give the columns that the MAC covers."""
        named: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self) if one.name in table.c}
        del named["mac"]
        return named | {"sums": sums.to_text(self.sums)}


def first(tx: Transaction) -> StoreState:
    """Give the state of a store that has none yet, as its tables are."""
    instance, digest = epochs(tx)
    begun = StoreState(instance, schema.HEAD, digest, sums=sums.taken(tx.connection))
    sequence, hash_ = newest_record(tx)
    return replace(begun, audit_sequence=sequence, audit_hash=hash_)


def fetch(tx: Transaction, known: StoreState | None = None) -> StoreState | None:
    """Read the state and verify it; nothing if there is none yet.

    What equals `known` was verified before. Raises IntegrityError if it does not fit its MAC or the epochs.
    """
    row = tx.at(table, {"number": _ONLY})
    if row is None:
        return None
    instance, digest = epochs(tx)
    found = _state(row, instance)
    if found != known:
        tx.verify(f"{NAME} {_ONLY}", found.mac, LABEL, instance, *found.values().values())
    if found.epochs != digest:
        raise IntegrityError("the epochs of the store were altered", hint="restore it from a backup")
    return found


def write(tx: Transaction, state: StoreState) -> StoreState:
    """Write the state under a MAC, and give it with that."""
    values = state.values()
    mac = tx.mac(LABEL, state.instance, *values.values())
    row = values | {"number": _ONLY, "mac_key": mac.key_number, "mac": mac.value}
    only: dict[str, Value] = {"number": _ONLY}
    changed = tx.connection.execute(statements.change_at(table, statements.shape(only)), row | statements.bound(only))
    if not changed.rowcount:
        tx.connection.execute(statements.insertion(table), row)
    return replace(state, mac=mac)


def newest_record(tx: Transaction, said: StoreState | None = None) -> tuple[int, bytes]:
    """Give sequence and hash of the newest audit record; IntegrityError unless a state, if given, says the same."""
    row = tx.one(_NEWEST)
    newest = (row["sequence"], row["hash"]) if row else (0, FIRST_HASH)
    if said is not None and newest != (said.audit_sequence, said.audit_hash):
        text = f"the audit chain ends with record {newest[0]}, and record {said.audit_sequence} was the newest"
        raise IntegrityError(text, hint="hsmkm audit verify tells more")
    return newest


def seals_since(revision: str) -> tuple[str, ...]:
    """Name the schemas after this one whose upgrade seals rows with the token."""
    return tuple(one for one in SEALING if one > revision)


def not_summed(revision: str) -> frozenset[str]:
    """Name the tables that have a sum only since after this schema."""
    return frozenset[str]().union(*(SEALING[one] for one in seals_since(revision)))


def is_new(tx: Transaction) -> bool:
    """Tell whether the store never held anything that a MAC or the audit chain covers."""
    return tx.one(select(schema.audit.c.sequence).limit(1)) is None and not sums.rows_in(tx.connection)


def _state(row: StoredRow, instance: bytes) -> StoreState:
    values = {one.name: row[one.name] for one in fields(StoreState) if one.name in table.c}
    return StoreState(instance, **values | {"sums": sums.from_text(row["sums"]), "mac": mac_of(row, f"{NAME} {_ONLY}")})


def epochs(tx: Transaction) -> tuple[bytes, bytes]:
    """Give the store's instance and the digest of its epochs (SHA-256, 32 octets)."""
    rows = tx.all(_EPOCHS)
    if not rows:
        raise IntegrityError("the store has no epoch", hint="restore it from a backup")
    cells = (row[column.name] for row in rows for column in schema.epoch.columns)
    return rows[0]["instance"], hashlib.sha256(encode("hsmkm epochs/1", *cells)).digest()
