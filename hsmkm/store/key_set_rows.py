"""Rows of key sets: read together with their meter's identity, and verified."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Select, bindparam, select

from hsmkm.errors import IntegrityError, PolicyError, RefusedError
from hsmkm.store import key_set, schema
from hsmkm.store.cells import altered, mac_of, text_of
from hsmkm.store.key_set import STATES, KeySet, KeySetRef, unpack
from hsmkm.store.meter import Meter
from hsmkm.store.schema import key_sets as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds

_METER = schema.meters
_MODEL = schema.models
_ORDER = schema.orders
KEY = ("system_title", "security_setup", "client", "generation")


def with_meter() -> Select[Any]:
    """Select key sets with what their MAC covers of their meter."""
    return (
        select(
            table,
            _METER.c.serial,
            _METER.c.suite.label("meter_suite"),
            _MODEL.c.name.label("model_name"),
            _METER.c.order,
            _ORDER.c.id.label("order_id"),
        )
        .outerjoin_from(table, _METER, table.c.system_title == _METER.c.system_title)
        .outerjoin(_MODEL, _METER.c.model == _MODEL.c.number)
        .outerjoin(_ORDER, _METER.c.order == _ORDER.c.number)
    )


_ONE = with_meter().where(*(table.c[name] == bindparam(name) for name in KEY))


def fetch(tx: Transaction, wanted: KeySetRef) -> KeySet:
    """Read a key set and verify it.

    Raises RefusedError if there is none, IntegrityError if it or its meter was altered, PolicyError without a token.
    """
    if tx.authenticator is None:
        raise PolicyError("a key set is only read with the token that verifies it")
    row = tx.one(_ONE, {name: getattr(wanted, name) for name in KEY})
    if row is None:
        raise RefusedError(f"there is no key set {wanted}")
    return verified(tx, row)


def verified(tx: Transaction, row: StoredRow) -> KeySet:
    """Read a row and verify it, unless the store is open for listing only; raises IntegrityError."""
    return verified_with_meter(tx, row)[0]


def verified_with_meter(tx: Transaction, row: StoredRow) -> tuple[KeySet, Meter]:
    """Do the same, and give what its MAC covers of its meter."""
    name = row_name(row)
    found = _key_set(row)
    meter = _meter(row)
    if meter is None:
        raise altered(name)
    if tx.authenticator is not None:
        try:
            key_set.verify(tx.authenticator, found, meter)
        except IntegrityError as error:
            raise altered(name) from error
    return found, meter


def faults(tx: Transaction) -> Iterator[str]:
    """Name the rows that do not fit their MAC or their meter."""
    for row in tx.stream(with_meter().order_by(*(table.c[name] for name in KEY))):
        try:
            verified(tx, row)
        except IntegrityError:
            yield row_name(row)


def row_name(row: StoredRow) -> str:
    """Name a row for people, whatever its cells hold."""
    return "key_sets " + "/".join(text_of(row[name]) for name in KEY)


def ref(row: StoredRow) -> KeySetRef:
    """Name the key set of a row."""
    return KeySetRef(row["system_title"], row["security_setup"], row["client"], row["generation"])


def _key_set(row: StoredRow) -> KeySet:
    name = row_name(row)
    if not isinstance(row["system_title"], bytes):
        raise altered(name)
    try:
        state = STATES[row["state"]]
        keys = unpack(row["keys"], name)
        destroy_after = from_seconds(row["destroy_after"])
        mac = mac_of(row, name)
        return KeySet(ref(row), row["suite"], row["storage_key"], state, keys, mac, row["batch"], destroy_after)
    except (IndexError, TypeError, ValueError, OverflowError, OSError, RefusedError) as error:  # no state, no moment
        raise altered(name) from error


def _meter(row: StoredRow) -> Meter | None:
    if row["serial"] is None or row["model_name"] is None or (row["order"] is not None and row["order_id"] is None):
        return None
    return Meter(row["system_title"], row["serial"], row["model_name"], row["meter_suite"], row["order_id"])
