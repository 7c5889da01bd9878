"""Meters: added with their identity, found by title or serial number, changed under a MAC of their own.

A row that was never changed has no MAC: its identity is covered by the MAC of its key sets, and what may change is
empty, which every read checks. So provisioning a meter takes one MAC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

from sqlalchemy import select

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store import models, orders, pages, schema
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.canonical import Value
from hsmkm.store.cells import altered
from hsmkm.store.key_set import TITLE_OCTETS
from hsmkm.store.meter import Meter
from hsmkm.store.pages import rows_of
from hsmkm.store.schema import meters as table
from hsmkm.store.store import Store, StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds
from hsmkm.token.types import KEY_OCTETS

__all__ = [
    "Meter",
    "add",
    "add_many",
    "every",
    "faults",
    "find",
    "get",
    "listing",
    "meter_of",
    "of_titles",
    "present",
    "require",
    "rows",
    "update",
    "update_many",
]

IDENTITY = ("system_title", "serial", "model", "suite", "order")
MUTABLE = ("address", "concentrator", "registered", "state")
ROWS = AuthenticatedTable("hsmkm meter/1", table, ("system_title",), (*IDENTITY, *MUTABLE))
PAGE = 1000


def add(tx: Transaction, meter: Meter, *, own_mac: bool = False) -> None:
    """Add a meter; it gets a MAC of its own if anything changeable is set, or where no key set will cover it."""
    values = _values(tx, meter)
    if own_mac or any(values[name] is not None for name in MUTABLE):
        ROWS.insert(tx, values)
        return
    if tx.one(select(table.c.suite).where(table.c.system_title == meter.system_title)) is not None:
        raise RefusedError(f"meter {meter.title} is there already")
    tx.insert(table, values)


def add_many(tx: Transaction, meters: Iterable[Meter]) -> int:
    """Add new meters in bulk, sorted by title for speed; nothing changeable may be set (ValueError)."""
    model_numbers: dict[str, int] = {}
    order_numbers: dict[str | None, int | None] = {None: None}
    batch = []
    for meter in meters:
        if (meter.address, meter.concentrator, meter.registered, meter.state) != (None, None, None, None):
            raise ValueError("meters added in bulk have only their identity")
        if meter.model not in model_numbers:
            model_numbers[meter.model] = models.intern(tx, meter.model)
        if meter.order not in order_numbers:
            order_numbers[meter.order] = orders.number(tx, meter.order)
        _check(meter)
        tx.effect(meter.system_title + meter.serial.encode())
        numbers = model_numbers[meter.model], meter.suite, order_numbers[meter.order]
        batch.append((meter.system_title, meter.serial, *numbers))
    return tx.insert_rows(table, IDENTITY, batch)


def get(tx: Transaction, system_title: bytes) -> Meter | None:
    """Find a meter by its system title; raises IntegrityError if its row was altered."""
    row = tx.at(table, {"system_title": system_title})
    return None if row is None else _read(tx, row)


def present(tx: Transaction, titles: Sequence[bytes]) -> set[bytes]:
    """Tell which of many system titles there are meters of; nothing of their rows is believed."""
    found: set[bytes] = set()
    for start in range(0, len(titles), PAGE):
        wanted = select(table.c.system_title).where(table.c.system_title.in_(titles[start : start + PAGE]))
        found.update(tx.connection.scalars(wanted))
    return found


def of_titles(tx: Transaction, titles: Sequence[bytes]) -> dict[bytes, Meter]:
    """Find meters by their system titles, those that there are; raises IntegrityError as `get`."""
    return {meter.system_title: meter for meter in _read_all(tx, rows_of(tx, select(table), table, titles))}


def require(tx: Transaction, system_title: bytes) -> Meter:
    """Find a meter, or raise RefusedError."""
    meter = get(tx, system_title)
    if meter is None:
        raise RefusedError(f"there is no meter {system_title.hex().upper()}")
    return meter


def find(tx: Transaction, text: str) -> Meter:
    """Find a meter by its system title in hex or by its serial number; raises RefusedError unless there is just one."""
    meter = get(tx, title) if (title := _title(text)) else None
    if meter is not None:
        return meter
    found = tx.all(select(table).where(table.c.serial == text).limit(2))
    if not found:
        raise RefusedError(f"there is no meter with title or serial number {text}", hint="see: hsmkm meter list")
    if len(found) > 1:
        raise RefusedError(f"more than one meter has the serial number {text}", hint="name it by its system title")
    return _read(tx, found[0])


def listing(
    tx: Transaction, *, after: bytes = b"", limit: int = PAGE, order: str | None = None, concentrator: str | None = None
) -> list[Meter]:
    """List meters by title, beginning behind `after`; the last title of a page is where the next begins."""
    statement = select(table).where(table.c.system_title > after).order_by(table.c.system_title).limit(limit)
    if order is not None:
        statement = statement.where(table.c.order == orders.number(tx, order))
    if concentrator is not None:
        statement = statement.where(table.c.concentrator == concentrator)
    return list(_read_all(tx, tx.all(statement)))


def every(
    store: Store, *, after: bytes = b"", order: str | None = None, concentrator: str | None = None
) -> Iterator[Meter]:
    """Read every meter by title, as `listing` and without holding them."""

    def page(tx: Transaction, behind: bytes) -> list[Meter]:
        return listing(tx, after=behind, order=order, concentrator=concentrator)

    return pages.every(store, page, after, attrgetter("system_title"))


def update(tx: Transaction, meter: Meter) -> None:
    """Change what may change of a meter; raises RefusedError if its identity differs from what is stored."""
    row = tx.one(select(table).where(table.c.system_title == meter.system_title))
    if row is None:
        raise RefusedError(f"there is no meter {meter.title}")
    _read(tx, row)
    values = _values(tx, meter)
    if any(values[name] != row[name] for name in IDENTITY):
        raise RefusedError(f"the serial number, model, suite and order of meter {meter.title} never change")
    ROWS.replace(tx, row, {name: values[name] for name in MUTABLE})


def update_many(tx: Transaction, changed: Sequence[Meter]) -> None:
    """Change what may change of many meters, each of which is named once; raises as `update`."""
    wanted = {meter.system_title: meter for meter in changed}
    found = list(rows_of(tx, select(table), table, sorted(wanted)))
    for missing in sorted(wanted.keys() - {row["system_title"] for row in found}):
        raise RefusedError(f"there is no meter {missing.hex().upper()}")
    for before in _read_all(tx, found):
        if wanted[before.system_title].identity != before.identity:
            raise RefusedError(f"the serial number, model, suite and order of meter {before.title} never change")
    ROWS.replace_many(tx, [(row, _changeable(wanted[row["system_title"]])) for row in found])


def rows(tx: Transaction) -> Iterator[StoredRow]:
    """Read every row as it is stored, by title."""
    return tx.stream(ROWS.everything())


def meter_of(row: StoredRow, model: str, order: str | None) -> Meter:
    """Build the value of a row whose model and order are known."""
    registered: datetime | None = from_seconds(row["registered"])
    changeable: tuple[Any, ...] = (row["address"], row["concentrator"], registered, row["state"])
    return Meter(row["system_title"], row["serial"], model, row["suite"], order, *changeable)


def faults(tx: Transaction) -> Iterator[str]:
    """Name the rows that do not fit their own MAC, or have none and are not as they were added."""
    for row in rows(tx):
        try:
            _verify(tx, row)
        except IntegrityError:
            yield ROWS.name(row)


def _read(tx: Transaction, row: StoredRow) -> Meter:
    _verify(tx, row)
    model = next(iter(tx.column(schema.models, "name", {"number": row["model"]})), None)
    order = (
        next(iter(tx.column(schema.orders, "id", {"number": row["order"]})), None) if row["order"] is not None else None
    )
    if model is None or (order is None and row["order"] is not None):
        raise altered(ROWS.name(row))
    return meter_of(row, model, order)


def _read_all(tx: Transaction, found: Iterable[StoredRow]) -> Iterator[Meter]:
    """Read rows as `_read`, with the names of their models and orders looked up once."""
    known: dict[tuple[int, int | None], Meter] = {}
    for row in found:
        alike = row["model"], row["order"]
        if alike in known:
            _verify(tx, row)
            yield meter_of(row, known[alike].model, known[alike].order)
        else:
            known[alike] = _read(tx, row)
            yield known[alike]


def _verify(tx: Transaction, row: StoredRow) -> None:
    if row["mac"] is not None:
        ROWS.verify(tx, row)
    elif any(row[name] is not None for name in (*MUTABLE, "revision", "mac_key")):
        raise altered(ROWS.name(row))


def _values(tx: Transaction, meter: Meter) -> dict[str, Value]:
    _check(meter)
    return {
        "system_title": meter.system_title,
        "serial": meter.serial,
        "model": models.intern(tx, meter.model),
        "suite": meter.suite,
        "order": orders.number(tx, meter.order),
        **_changeable(meter),
    }


def _changeable(meter: Meter) -> dict[str, Value]:
    registered = to_seconds(meter.registered)
    return dict(zip(MUTABLE, (meter.address, meter.concentrator, registered, meter.state), strict=True))


def _check(meter: Meter) -> None:
    if len(meter.system_title) != TITLE_OCTETS or meter.suite not in KEY_OCTETS or not meter.serial or not meter.model:
        raise RefusedError(f"meter {meter.serial or meter.title} is not well formed")


def _title(text: str) -> bytes | None:
    try:
        title = bytes.fromhex(text)
    except ValueError:
        return None
    return title if len(title) == TITLE_OCTETS else None
