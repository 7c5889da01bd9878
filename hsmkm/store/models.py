"""Meter models, and the initial keys that all meters of a model leave their maker's line with.

A model's initial keys are sealed once and shared: every meter's key set of generation 0 names the same identities, and
its MAC is the model's, made over the model's name in place of a system title.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from sqlalchemy import select

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store.canonical import MECHANISM, Value, encode
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState, StoredKey, check_keys, named, pack, unpack
from hsmkm.store.meter import Meter
from hsmkm.store.schema import models as table
from hsmkm.store.store import Authenticator, StoredRow, Transaction, altered
from hsmkm.token.types import Mac

LABEL = "hsmkm model keys/1"


@dataclass(frozen=True, slots=True)
class ModelKeys:
    """The initial keys of a model, wrapped under storage key number `storage_key`."""

    model: str
    suite: int
    storage_key: int
    keys: tuple[StoredKey, ...]
    mac: Mac | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(sorted(self.keys, key=lambda key: key.role.value)))
        check_keys(self.model, self.suite, self.keys)


def encode_model_keys(keys: ModelKeys, key_number: int) -> bytes:
    """Encode what the MAC of a model's keys covers."""
    return encode(LABEL, MECHANISM, key_number, keys.model, keys.suite, keys.storage_key, *named(keys.keys))


def authenticate(authenticator: Authenticator, keys: ModelKeys) -> ModelKeys:
    """Return the keys with the MAC that binds them to their model."""
    mac = authenticator.mac(encode_model_keys(keys, authenticator.integrity_key))
    return replace(keys, mac=mac)


def add_keys(tx: Transaction, keys: ModelKeys) -> None:
    """Store a model's initial keys; raises RefusedError if it has some, IntegrityError if their MAC does not fit."""
    _verify(tx, keys)
    number = intern(tx, keys.model)
    if get_keys(tx, keys.model) is not None:
        raise RefusedError(f"model {keys.model} has initial keys already")
    mac = keys.mac or Mac(0, b"")
    values: dict[str, Value] = {"suite": keys.suite, "storage_key": keys.storage_key, "keys": pack(keys.keys)}
    tx.update(table, {"number": number}, values | {"revision": 1, "mac_key": mac.key_number, "mac": mac.value})


def get_keys(tx: Transaction, model: str) -> ModelKeys | None:
    """Read a model's initial keys and verify them."""
    row = tx.one(select(table).where(table.c.name == model))
    if row is None or row["keys"] is None:
        return None
    keys = _keys(row)
    _verify(tx, keys)
    return keys


def reseal(tx: Transaction, keys: ModelKeys) -> None:
    """Replace the wrapping and the MAC of a model's initial keys, which were authenticated."""
    _verify(tx, keys)
    mac = keys.mac or Mac(0, b"")
    sealed: dict[str, Value] = {"storage_key": keys.storage_key, "keys": pack(keys.keys)}
    if tx.update(table, {"name": keys.model}, sealed | {"mac_key": mac.key_number, "mac": mac.value}) != 1:
        raise RefusedError(f"model {keys.model} has no initial keys")


def every_keys(tx: Transaction) -> list[ModelKeys]:
    """Read and verify the initial keys of all models."""
    found = [_keys(row) for row in tx.all(select(table).where(table.c["keys"].is_not(None)).order_by(table.c.name))]
    for keys in found:
        _verify(tx, keys)
    return found


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

    Its MAC is the model's and was verified here; the meter itself is not covered by it.
    """
    keys = initial_keys(tx, model_name, association)
    if keys is None:
        raise RefusedError(f"model {model_name} has no initial keys", hint="import them with hsmkm model import")
    if (meter.model, meter.suite) != (model_name, keys.suite):
        raise RefusedError(f"meter {meter.serial} is not of model {model_name} with suite {keys.suite}")
    ref = KeySetRef(meter.system_title, security_setup, client, 0)
    return KeySet(ref, keys.suite, keys.storage_key, KeyState.ACTIVE, keys.keys, keys.mac)


def listing(tx: Transaction) -> list[tuple[str, bool]]:
    """List the models that are known, and whether their initial keys are."""
    statement = select(table.c.name, table.c["keys"].is_not(None).label("given")).order_by(table.c.name)
    return [(row["name"], bool(row["given"])) for row in tx.all(statement)]


def intern(tx: Transaction, model: str) -> int:
    """Return the number that rows of meters keep in place of a model's name, and give it one if it has none."""
    row = tx.one(select(table.c.number).where(table.c.name == model))
    return tx.insert(table, {"name": model}) if row is None else int(row["number"])


def names(tx: Transaction) -> dict[int, str]:
    """Map every number to its model's name."""
    return {row["number"]: row["name"] for row in tx.all(select(table.c.number, table.c.name))}


def faults(tx: Transaction) -> list[str]:
    """Name the models whose keys do not fit their MAC."""
    found = []
    for row in tx.all(select(table).order_by(table.c.name)):
        try:
            if row["keys"] is not None:
                _verify(tx, _keys(row))
            elif row["mac"] is not None:
                raise altered(_row_name(row["name"]))
        except (IntegrityError, RefusedError):
            found.append(_row_name(row["name"]))
    return found


def _keys(row: StoredRow) -> ModelKeys:
    name = _row_name(row["name"])
    if None in (row["suite"], row["storage_key"], row["mac_key"], row["mac"]):
        raise altered(name)
    mac = Mac(row["mac_key"], row["mac"])
    return ModelKeys(row["name"], row["suite"], row["storage_key"], unpack(row["keys"], name), mac)


def _verify(tx: Transaction, keys: ModelKeys) -> None:
    if tx.authenticator is None:
        return
    if keys.mac is None:
        raise IntegrityError(f"the initial keys of model {keys.model} carry no mac")
    try:
        tx.authenticator.verify(encode_model_keys(keys, keys.mac.key_number), keys.mac)
    except IntegrityError as error:
        raise altered(_row_name(keys.model)) from error


def _row_name(model: str) -> str:
    return f"models {model}"
