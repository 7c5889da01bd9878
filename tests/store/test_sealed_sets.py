"""Key sets that are read to be verified elsewhere are what one at a time is read, and altered ones are named."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import IntegrityError
from hsmkm.store import key_sets, sealed_sets
from hsmkm.store.key_set import KeySet, KeyState, unpack
from hsmkm.store.sealed_sets import SealedSet
from hsmkm.store.times import from_seconds
from hsmkm.token.types import Mac
from tests.database import query
from tests.store.test_key_sets import stored

if TYPE_CHECKING:
    from hsmkm.store.store import Store
    from tests.store.conftest import Factory

DUE = datetime(2027, 1, 2, tzinfo=UTC)


def as_key_set(one: SealedSet, batch: int) -> KeySet:
    kind, form = one.kind, one.kind.form
    keys, mac = unpack(one.keys, "row"), Mac(kind.integrity_key, one.mac)
    return KeySet(one.ref, form.suite, kind.storage_key, form.state, keys, mac, batch, from_seconds(kind.destroy_after))


def read(store: Store, title: bytes) -> list[SealedSet]:
    with store.read() as tx:
        return sealed_sets.of_meters(tx, [title, b"\0" * 8]).get(title, [])


def test_what_is_read_is_what_was_stored_and_is_verified_on_demand(store: Store, factory: Factory) -> None:
    first, second = stored(store, factory), stored(store, factory, 2, KeyState.ACTIVE)
    with store.begin("x", "y", {}) as tx:
        key_sets.set_destroy_after(tx, first.ref, DUE)
        first = key_sets.get(tx, first.ref)
    found = read(store, first.ref.system_title)
    assert [as_key_set(one, key_set.batch) for one, key_set in zip(found, (first, second), strict=True)] == [
        first,
        second,
    ]
    assert first.destroy_after == DUE
    with store.read() as tx:
        sealed_sets.verify(tx, found)
        others = replace(found[0].kind, destroy_after=None), replace(found[1].kind, storage_key=2)
        for one, kind in zip(found, others, strict=True):
            with pytest.raises(IntegrityError, match=f"^key_sets {one.ref} does not fit its mac$"):
                sealed_sets.verify(tx, [one._replace(kind=kind)])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE key_sets SET suite = 2",
        "UPDATE key_sets SET suite = 7",
        "UPDATE key_sets SET state = 77",
        "UPDATE key_sets SET state = -1",
        "UPDATE meters SET suite = 1",
        "DELETE FROM meters",
        "DELETE FROM models",
    ],
)
def test_a_row_that_no_set_can_have_is_named(store: Store, url: str, factory: Factory, change: str) -> None:
    one = stored(store, factory)
    query(url, change)
    with pytest.raises(IntegrityError, match=f"key_sets {one.ref} does not fit its mac"):
        read(store, one.ref.system_title)


@pytest.mark.parametrize("at", [0, 17, 42])
def test_keys_that_cannot_be_read_are_named(store: Store, url: str, factory: Factory, at: int) -> None:
    one, _ = stored(store, factory), stored(store, factory, 2)
    ((keys,),) = query(url, "SELECT keys FROM key_sets WHERE generation = 1")
    altered = bytearray(keys)
    altered[at] = 99
    query(url, "UPDATE key_sets SET keys = ? WHERE generation = 2", bytes(altered))
    with pytest.raises(IntegrityError, match=str(replace(one.ref, generation=2))):
        read(store, one.ref.system_title)
