"""Meter models, and the initial keys that all meters of a model leave their maker's line with.

A model's initial keys are sealed once and shared: every meter's key set of generation 0 names the same identities. The
MAC of a model's row covers them, its name and the number that rows of meters keep in place of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import select

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store.authenticated import AuthenticatedTable, next_number
from hsmkm.store.canonical import Value
from hsmkm.store.cells import altered
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState, StoredKey, check_keys, pack, unpack
from hsmkm.store.meter import Meter
from hsmkm.store.schema import models as table
from hsmkm.store.store import StoredRow, Transaction

ROWS = AuthenticatedTable("hsmkm model/1", table, ("name",), ("number", "name", "suite", "storage_key", "keys"))


@dataclass(frozen=True, slots=True)
class ModelKeys:
    """The initial keys of a model, wrapped under storage key number `storage_key`."""

    model: str
    suite: int
    storage_key: int
    keys: tuple[StoredKey, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(sorted(self.keys, key=lambda key: key.role.value)))
        check_keys(self.model, self.suite, self.keys)


def add_keys(tx: Transaction, keys: ModelKeys) -> None:
    """Store a model's initial keys; raises RefusedError if it has some."""
    intern(tx, keys.model)
    if get_keys(tx, keys.model) is not None:
        raise RefusedError(f"model {keys.model} has initial keys already")
    _put(tx, keys, {"suite": keys.suite})


def get_keys(tx: Transaction, model: str) -> ModelKeys | None:
    """Read a model's initial keys and verify them."""
    row = ROWS.fetch(tx, name=model)
    return None if row is None or row["keys"] is None else _keys(row)


def reseal(tx: Transaction, keys: ModelKeys) -> None:
    """Replace the wrapping of a model's initial keys."""
    if get_keys(tx, keys.model) is None:
        raise RefusedError(f"model {keys.model} has no initial keys")
    _put(tx, keys, {})


def every_keys(tx: Transaction) -> list[ModelKeys]:
    """Read and verify the initial keys of all models."""
    return [_keys(row) for row in ROWS.rows(tx, ROWS.everything().where(table.c["keys"].is_not(None)))]


def every_initial_identity(tx: Transaction) -> Iterator[bytes]:
    """Give the identities of all initial keys, which every meter of a model shares; `faults` names unreadable ones."""
    for row in tx.all(select(table).where(table.c["keys"].is_not(None))):
        with suppress(IntegrityError):
            yield from (key.identity for key in _keys(row).keys)


def name_for(model: str, association: str) -> str:
    """Name the initial keys that a model's meters have in one further association; no model's name has a slash."""
    return f"{model}/{association}"


def initial_keys(tx: Transaction, model: str, association: str) -> ModelKeys | None:
    """Read the keys that meters of a model come with in an association: its own, or else the model's."""
    return get_keys(tx, name_for(model, association)) or get_keys(tx, model)


def initial_identities(tx: Transaction, model: str) -> set[bytes]:
    """Read the identities of all keys that meters of a model come with, in any association."""
    names = tx.all(select(table.c.name).where(table.c["keys"].is_not(None)))
    own = [row["name"] for row in names if row["name"].partition("/")[0] == model]
    found = [get_keys(tx, name) for name in own]
    return {key.identity for keys in found if keys for key in keys.keys}


def initial(
    tx: Transaction, model_name: str, meter: Meter, security_setup: int, client: int, association: str = ""
) -> KeySet:
    """Return a meter's key set of generation 0; raises RefusedError if its model has no initial keys or another suite.

    It has no MAC: the model's was verified here, and the meter itself is not covered by it.
    """
    keys = initial_keys(tx, model_name, association)
    if keys is None:
        raise RefusedError(f"model {model_name} has no initial keys", hint="import them with hsmkm model import")
    if (meter.model, meter.suite) != (model_name, keys.suite):
        raise RefusedError(f"meter {meter.serial} is not of model {model_name} with suite {keys.suite}")
    ref = KeySetRef(meter.system_title, security_setup, client, 0)
    return KeySet(ref, keys.suite, keys.storage_key, KeyState.ACTIVE, keys.keys)


def listing(tx: Transaction) -> list[tuple[str, bool]]:
    """List the models that are known, and whether their initial keys are."""
    statement = select(table.c.name, table.c["keys"].is_not(None).label("given")).order_by(table.c.name)
    return [(row["name"], bool(row["given"])) for row in tx.all(statement)]


def intern(tx: Transaction, model: str) -> int:
    """Return the number that rows of meters keep in place of a model's name, and give it one if it has none."""
    row = tx.one(select(table.c.number).where(table.c.name == model))
    if row is not None:
        return int(row["number"])
    number = next_number(tx, table.c.number)
    ROWS.insert(tx, {"number": number, "name": model, "suite": None, "storage_key": None, "keys": None})
    return number


def names(tx: Transaction) -> dict[int, str]:
    """Map every number to its model's name."""
    return {row["number"]: row["name"] for row in tx.all(select(table.c.number, table.c.name))}


def _keys(row: StoredRow) -> ModelKeys:
    name = ROWS.name(row)
    if None in (row["suite"], row["storage_key"]):
        raise altered(name)
    try:
        return ModelKeys(row["name"], row["suite"], row["storage_key"], unpack(row["keys"], name))
    except RefusedError as error:
        raise altered(name) from error


def _put(tx: Transaction, keys: ModelKeys, suite: dict[str, Value]) -> None:
    row = ROWS.fetch(tx, name=keys.model)
    if row is None:
        raise RefusedError(f"there is no model {keys.model}")
    ROWS.replace(tx, row, suite | {"storage_key": keys.storage_key, "keys": pack(keys.keys)})
