"""The entries of a package that is opened: handed over in lots of one form, and taken up again as what is stored."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hsmkm.packages.content import MeterEntry
from hsmkm.packages.taking import Arriving, Taken
from hsmkm.store.holders import Giving
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState, unpack
from hsmkm.store.key_set_bulk import Form
from hsmkm.store.meter import Meter
from hsmkm.token.types import Mac, MeterRole
from hsmkm.token.vault import WRAP_OVERHEAD


class KnownMeters(Protocol):
    """Whoever knows meters."""

    def meter(self, system_title: bytes) -> Meter | None:
        """Return the meter as we know it, or None."""


class TakenKeys(NamedTuple):
    """The keys of one entry as they are stored, with their MAC; `keys` are the numbers of storage and integrity key."""

    form: Form
    keys: tuple[int, int]
    stored: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """One entry of a package: the meter, and its keys under our own storage key with their MAC."""

    entry: MeterEntry
    meter: Meter
    taken: TakenKeys | None = field(repr=False)

    @property
    def key_set(self) -> KeySet | None:
        """The keys as a value, or None where the entry carries none."""
        if self.taken is None:
            return None
        form, (storage_key, integrity_key), stored, mac = self.taken
        ref = KeySetRef(self.entry.system_title, form.security_setup, form.client, form.generation)
        keys = unpack(stored, str(ref))
        return KeySet(ref, form.suite, storage_key, form.state, keys, Mac(integrity_key, mac))


@dataclass(frozen=True, slots=True)
class NewSets:
    """Key sets of one form to be stored, each (system title, keys as they are stored, MAC)."""

    form: Form
    keys: tuple[int, int]
    sets: tuple[tuple[bytes, bytes, bytes], ...] = field(repr=False)


class Arrivals:
    """The entries of one package on their way into the token; `giving` notes who gave what."""

    def __init__(self, known: KnownMeters, entries: Sequence[MeterEntry], giving: Giving) -> None:
        self._known = known
        self._entries = entries
        self._giving = giving
        self._meters: list[Meter] = []
        self._taken: list[TakenKeys | None] = [None] * len(entries)
        self._handed: deque[Arriving] = deque()
        self._faults: list[tuple[int, MeterRole]] = []
        self.new_sets: list[NewSets] = []

    def lots(self, size: int) -> Iterator[Arriving]:
        """Hand over the entries that carry keys, at most so many together."""
        forms: dict[tuple[object, ...], Form] = {}
        waiting: dict[int, list[tuple[int, bytes, str, bytes, bytes]]] = {}
        for number, entry in enumerate(self._entries):
            meter = self._meter(entry)
            if not entry.keys:
                continue
            alike = _alike(entry, meter)
            form = forms.get(alike) or forms.setdefault(alike, _form(entry, meter))
            sets = waiting.setdefault(id(form), [])
            identities = b"".join([key.identity for key in entry.keys])
            sets.append((number, entry.system_title, meter.serial, identities, b"".join(_wrapped(entry))))
            if len(sets) == size:
                yield self._hand(form, waiting.pop(id(form)))
        for form in forms.values():
            if id(form) in waiting:
                yield self._hand(form, waiting[id(form)])

    def _hand(self, form: Form, sets: Sequence[tuple[int, bytes, str, bytes, bytes]]) -> Arriving:
        lot = Arriving(form, tuple(sets))
        self._handed.append(lot)
        return lot

    def _meter(self, entry: MeterEntry) -> Meter:
        """Take the meter as we know it, else as the package tells it."""
        meter = self._known.meter(entry.system_title)
        if meter is None:
            address = entry.address or None
            meter = Meter(entry.system_title, entry.serial, entry.model, entry.suite, address=address)
        self._meters.append(meter)
        return meter

    def take(self, taken: Taken) -> None:
        """Take up what became of the lot that was handed over first of those still away."""
        lot = self._handed.popleft()
        self._faults += taken.faults
        if self._faults:
            return
        form, keys, entries = lot.form, taken.keys, self._entries
        rows = [
            (number, title, stored, mac)
            for (number, title, *_), (stored, mac) in zip(lot.sets, taken.sets, strict=True)
        ]
        self.new_sets.append(NewSets(form, keys, tuple([row[1:] for row in rows])))
        for number, _, stored, mac in rows:
            self._taken[number] = TakenKeys(form, keys, stored, mac)
        its = [entries[row[0]] for row in rows]
        self._giving.add((entry.name, [key.identity for key in entry.keys]) for entry in its)

    def reasons(self) -> list[str]:
        """Say of each key that does not unwrap which it is, in the order of the package."""
        return [f"{self._entries[number].place}: {role} does not unwrap" for number, role in sorted(self._faults)]

    def received(self) -> tuple[Received, ...]:
        """Give every entry with what became of it, when all lots were taken up."""
        return tuple(map(Received, self._entries, self._meters, self._taken))


def _wrapped(entry: MeterEntry) -> list[bytes]:
    return [key.wrapped for key in entry.keys]


def _alike(entry: MeterEntry, meter: Meter) -> tuple[object, ...]:
    """Give all that the sets of one form have in common."""
    roles = [id(key.role) for key in entry.keys]
    place = entry.security_setup, entry.client, entry.generation, meter.model, meter.order, entry.suite, entry.state
    return *place, *roles, *map(len, _wrapped(entry))


def _form(entry: MeterEntry, meter: Meter) -> Form:
    return Form(
        security_setup=entry.security_setup,
        client=entry.client,
        generation=entry.generation,
        model=meter.model,
        order=meter.order,
        suite=entry.suite,
        state=KeyState(entry.state),
        keys=tuple((key.role, len(key.wrapped) - WRAP_OVERHEAD) for key in entry.keys),
    )
