"""Key sets as they are stored, read for those who verify them elsewhere: in workers, which have the token and no store.

Nothing of them is believed until then. What decides which set is used must be verified too: `verify` does it here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from hsmkm.errors import IntegrityError, PolicyError, RefusedError
from hsmkm.store import key_set_rows
from hsmkm.store.cells import altered
from hsmkm.store.key_set import IDENTITY_OCTETS, STATES, WRAP_OCTETS, KeySetRef, StoredKey, check_keys, unpack
from hsmkm.store.key_set_bulk import Form, Kind
from hsmkm.store.pages import PAGE
from hsmkm.store.schema import key_sets as table
from hsmkm.store.store import Transaction
from hsmkm.token.types import Mac, MeterRole

Keys: TypeAlias = tuple[tuple[MeterRole, int], ...]
"""Role and length in octets of each key."""


class SealedSet(NamedTuple):
    """A key set: what it has in common with others, and its own: meter, keys as they are stored, and MAC."""

    kind: Kind
    system_title: bytes
    serial: str
    keys: bytes
    mac: bytes

    @property
    def ref(self) -> KeySetRef:
        """Which key set it says it is."""
        form = self.kind.form
        return KeySetRef(self.system_title, form.security_setup, form.client, form.generation)


def of_meters(tx: Transaction, titles: Sequence[bytes]) -> dict[bytes, list[SealedSet]]:
    """Read all key sets of meters, oldest generation first; IntegrityError for a row that cannot be read."""
    kinds = _Kinds()
    found: dict[bytes, list[SealedSet]] = defaultdict(list)
    statement = key_set_rows.with_meter().order_by(*(table.c[name] for name in key_set_rows.KEY))
    for start in range(0, len(titles), PAGE):
        wanted = table.c.system_title.in_(titles[start : start + PAGE])
        for row in tx.connection.execute(statement.where(wanted)):
            title, *place, keys, integrity_key, mac, _batch, due, serial, suite, model, order, order_id = row
            if not (isinstance(keys, bytes) and isinstance(mac, bytes) and isinstance(serial, str)):
                raise altered(_name(title, place))
            kind = kinds.of(title, (*place, integrity_key, due, suite, model, order, order_id), keys)
            found[title].append(SealedSet(kind, title, serial, keys, mac))
    return found


def verify(tx: Transaction, sets: Iterable[SealedSet]) -> None:
    """Raise IntegrityError, naming the row, unless each set's MAC fits it; PolicyError without a token."""
    for one in sets:
        if tx.authenticator is None:
            raise PolicyError("a key set is only read with the token that verifies it")
        covered = one.kind.encoder().covered(one.system_title, one.serial, one.keys)
        try:
            tx.authenticator.verify(covered, Mac(one.kind.integrity_key, one.mac))
        except IntegrityError as error:
            raise misfit(one.ref) from error


def misfit(ref: KeySetRef) -> IntegrityError:
    """Say that a set does not fit its MAC."""
    return altered(f"key_sets {ref}")


class _Kinds:
    """The kinds of the rows that were met."""

    def __init__(self) -> None:
        self._met: dict[tuple[tuple[Any, ...], int], Kind] = {}
        self._layouts = Layouts()

    def of(self, title: bytes, told: tuple[Any, ...], keys: bytes) -> Kind:
        layout = self._layouts.of(title, told[:4], keys)
        kind = self._met.get((told, id(layout)))
        if kind is None:
            kind = self._met[told, id(layout)] = _kind(title, told, layout)
        return kind


def _kind(title: bytes, told: tuple[Any, ...], layout: Keys) -> Kind:
    setup, client, generation, suite, storage_key, state, integrity_key, due, meter_suite, model, order, order_id = told
    whole = model is not None and (order is None) == (order_id is None) and suite == meter_suite
    numbers = all(isinstance(each, int) for each in (*told[:7], 0 if due is None else due))
    if not whole or not numbers or not 0 <= state < len(STATES):
        raise altered(_name(title, told))
    form = Form(setup, client, generation, model, order_id, suite, STATES[state], layout)
    return Kind(form, storage_key, integrity_key, due)


def _name(title: bytes, place: Sequence[int]) -> str:
    return f"key_sets {KeySetRef(title, *place[:3])}"


class Layouts:
    """Tells which keys stored sets have, in the order in which they are stored, and remembers what it met."""

    def __init__(self) -> None:
        self._met: dict[tuple[int, int], list[tuple[Callable[[bytes], object], object, Keys]]] = {}

    def of(self, title: bytes, place: Sequence[int], stored: bytes) -> Keys:
        """Give role and length of each key; IntegrityError, naming the row, for what is no set of its suite.

        `place` is the setup, client, generation and suite of the row.
        """
        known = self._met.setdefault((place[3], len(stored)), [])
        for pick, expected, keys in known:
            if pick(stored) == expected:
                return keys
        name = _name(title, place)
        found = unpack(stored, name)
        try:
            check_keys(name, place[3], found)
        except RefusedError as error:
            raise altered(name) from error
        keys = tuple((key.role, len(key.wrapped) - WRAP_OCTETS) for key in found)
        pick = itemgetter(*_marks(found))
        known.append((pick, pick(stored), keys))
        return keys


def _marks(keys: Sequence[StoredKey]) -> Iterator[int]:
    """Give the places of all octets that say which keys there are and how long they are."""
    at = 0
    for key in keys:
        yield at
        yield at + 1 + IDENTITY_OCTETS
        at += 2 + IDENTITY_OCTETS + len(key.wrapped)
