"""Who was given which key, and in which package: what to renew when a party is compromised or leaves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from hsmkm.store.key_set import KeySetRef
from hsmkm.store.schema import holders as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds

COLUMNS = (
    "identity",
    "system_title",
    "security_setup",
    "client",
    "generation",
    "party",
    "package_id",
    "given",
)


@dataclass(frozen=True, slots=True)
class Holder:
    """A party that was given a key of a set, at a moment that the store notes itself."""

    identity: bytes
    ref: KeySetRef
    party: str
    package_id: str
    given: datetime | None = None


def add(tx: Transaction, identity: bytes, ref: KeySetRef, party: str, package_id: str) -> None:
    """Note that a party is given a key; raises RefusedError if this package gave it already."""
    add_many(tx, [Holder(identity, ref, party, package_id)])


def add_many(tx: Transaction, given: Iterable[Holder]) -> int:
    """Note many at once, and return how many they were."""
    now = to_seconds(tx.now)
    rows = []
    for holder in given:
        ref = holder.ref
        place = (ref.system_title, ref.security_setup, ref.client, ref.generation)
        rows.append((holder.identity, *place, holder.party, holder.package_id, now))
        tx.effect(b"".join((b"holder", holder.identity, str(ref).encode(), holder.party.encode())))
    return tx.insert_rows(table, COLUMNS, sorted(rows))


def for_key(tx: Transaction, identity: bytes) -> list[Holder]:
    """List who was given a key."""
    statement = select(table).where(table.c.identity == identity)
    return [_holder(row) for row in tx.all(statement.order_by(*table.primary_key.columns))]


def for_party(tx: Transaction, party: str) -> list[Holder]:
    """List what a party was given."""
    statement = select(table).where(table.c.party == party)
    return [_holder(row) for row in tx.all(statement.order_by(*table.primary_key.columns))]


def for_meter(tx: Transaction, system_title: bytes) -> list[Holder]:
    """List who was given the keys of a meter, by generation and moment."""
    columns = (table.c.security_setup, table.c.client, table.c.generation, table.c.given, table.c.party)
    statement = select(table).where(table.c.system_title == system_title)
    return [_holder(row) for row in tx.all(statement.order_by(*columns, table.c.identity))]


def _holder(row: StoredRow) -> Holder:
    ref = KeySetRef(row["system_title"], row["security_setup"], row["client"], row["generation"])
    return Holder(row["identity"], ref, row["party"], row["package_id"], from_seconds(row["given"]))
