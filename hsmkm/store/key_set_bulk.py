"""Key sets of one form in bulk: what a row holds and what its MAC covers, with all that the sets share laid out once.

What comes of it is what `hsmkm.store.key_set` makes of one set at a time, octet for octet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hsmkm.store.canonical import MECHANISM, encode, item
from hsmkm.store.key_set import IDENTITY_OCTETS, LABEL, ROLE_NUMBERS, WRAP_OCTETS, KeyState
from hsmkm.token.types import KEY_OCTETS, MeterRole


@dataclass(frozen=True, slots=True)
class Form:
    """What key sets share: place, model, order, suite, first state, and each key's role with its length in octets."""

    security_setup: int
    client: int
    generation: int
    model: str
    order: str | None
    suite: int
    state: KeyState
    keys: tuple[tuple[MeterRole, int], ...]

    def __post_init__(self) -> None:
        if self.suite not in KEY_OCTETS or len({role for role, _ in self.keys}) != len(self.keys):
            raise ValueError("a form has one key of each role, and a suite that there is")

    @property
    def stored(self) -> tuple[int, ...]:
        """The places of the keys in the order in which they are stored, that of their roles' names."""
        return tuple(sorted(range(len(self.keys)), key=lambda place: self.keys[place][0].value))

    def slices(self, *, identity: bool) -> tuple[slice, ...]:
        """Where the identities stand in what is stored, or the wrapped keys, as `stored` orders them."""
        found, at = [], 0
        for place in self.stored:
            start = at + 1 + (0 if identity else IDENTITY_OCTETS + 1)
            wrapped = self.keys[place][1] + WRAP_OCTETS
            found.append(slice(start, start + (IDENTITY_OCTETS if identity else wrapped)))
            at += 2 + IDENTITY_OCTETS + wrapped
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Kind:
    """What stored sets have in common: their form, the numbers of their keys, and the second when they are due."""

    form: Form
    storage_key: int
    integrity_key: int
    destroy_after: int | None

    def encoder(self) -> FormEncoder:
        """Give what encodes sets of this kind."""
        return FormEncoder(self.form, self.storage_key, self.integrity_key, self.destroy_after)


class FormEncoder:
    """Encodes sets of a form under numbered storage and integrity keys, due for destruction at a second, or not yet."""

    def __init__(self, form: Form, storage_key: int, key_number: int, destroy_after: int | None = None) -> None:
        self._head = encode(LABEL, MECHANISM, key_number)
        self._place = b"".join(map(item, (form.security_setup, form.client, form.generation)))
        shared = (form.model, form.order, form.suite, form.suite, storage_key, form.state.value, len(form.keys))
        self._shared = b"".join(map(item, shared))
        self._keys = tuple(_keys(form))
        self._tail = b"" if destroy_after is None else item(destroy_after)
        self._identities, self._wrapped = form.slices(identity=True), form.slices(identity=False)

    def encode(self, system_title: bytes, serial: str, identities: bytes, sealed: bytes) -> tuple[bytes, bytes]:
        """Give what the row holds of the keys, and what the MAC covers; both inputs have the keys in the form's order.

        `identities` has 16 octets for each key, and `sealed` each key wrapped under its storage key.
        """
        row: list[bytes] = []
        covered = [self._head, item(system_title), self._place, item(serial), self._shared]
        for number, role, octets, length, identity, wrapping in self._keys:
            born, wrapped = identities[identity], sealed[wrapping]
            row += (number, born, octets, wrapped)
            covered += (role, born, length, wrapped)
        covered.append(self._tail)
        return b"".join(row), b"".join(covered)

    def covered(self, system_title: bytes, serial: str, stored: bytes) -> bytes:
        """Give what the MAC covers of a set that is stored in this form."""
        parts: list[bytes] = [self._head, item(system_title), self._place, item(serial), self._shared]
        for (_, role, _, length, _, _), identity, wrapped in zip(
            self._keys, self._identities, self._wrapped, strict=True
        ):
            parts += (role, stored[identity], length, stored[wrapped])
        parts.append(self._tail)
        return b"".join(parts)


def _keys(form: Form) -> Iterator[tuple[bytes, bytes, bytes, bytes, slice, slice]]:
    """Give what stands around each key, as it is stored: role and length, in the row and under the MAC; and places."""
    lengths = [octets + WRAP_OCTETS for _, octets in form.keys]
    for place in form.stored:
        role, start, wrapped = form.keys[place][0], sum(lengths[:place]), lengths[place]
        before = item(role.value) + _opening(IDENTITY_OCTETS)
        identity = slice(place * IDENTITY_OCTETS, (place + 1) * IDENTITY_OCTETS)
        number, octets = bytes((ROLE_NUMBERS[role],)), bytes((wrapped,))
        yield number, before, octets, _opening(wrapped), identity, slice(start, start + wrapped)


def _opening(octets: int) -> bytes:
    """Give what stands before so many octets in a canonical encoding."""
    return item(bytes(octets))[:-octets]


def identities_of(stored: Sequence[bytes], form: Form) -> Iterator[tuple[bytes, ...]]:
    """Give the identities of each stored set."""
    places = form.slices(identity=True)
    for one in stored:
        yield tuple(one[place] for place in places)


def wrapped_of(stored: Sequence[bytes], form: Form) -> Iterator[bytes]:
    """Give every wrapped key of stored sets."""
    places = form.slices(identity=False)
    for one in stored:
        for place in places:
            yield one[place]
