"""The content of a package in the one form in which it is written, read quickly: entries are alike but for few cells.

The first entry of a form is read strictly. From it comes a pattern of all that entries like it share, in the canonical
form, and with it the next ones are read. Whatever is not canonical, unusual or wrong is left to the strict reader,
which names it: what is read here is what it would read, and never more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

from hsmkm.packages.strict_json import Value, canonical, parse_at

if TYPE_CHECKING:
    from hsmkm.packages.content import MeterEntry, WrappedKey

MOST_FORMS = 16
"""Where entries differ more, a pattern for each would cost more than it saves."""

_METERS = '"meters":['

_TEXT = r"[ -!#-\[\]-~]"
"""A printable character of ASCII that JSON writes as it is."""

ReadEntry: TypeAlias = "Callable[[Value], MeterEntry | None]"
"""Reads an entry strictly; nothing for one with a fault."""


class EntryReader:
    """Reads entries of one form, of which one is known."""

    def __init__(self, known: MeterEntry) -> None:
        self.known = known
        groups = {"system_title": "([0-9A-F]{16})", "serial": f"({_TEXT}{{1,64}})", "address": f"({_TEXT}{{0,255}})"}
        document = known.document() | {name: _mark(name) for name in groups}
        keys = sorted(known.keys, key=lambda key: key.role.value)
        if keys:
            document["keys"] = {
                key.role.value: {
                    "identity": _mark(f"{key.role.value} i"),
                    "wrapped": _mark(f"{key.role.value} w"),
                    "under": key.under.value,
                }
                for key in keys
            }
        for key in keys:
            groups[f"{key.role.value} i"] = f"([0-9a-f]{{{2 * len(key.identity)}}})"
            groups[f"{key.role.value} w"] = f"([0-9a-f]{{{2 * len(key.wrapped)}}})"
        pattern = re.escape(canonical(document).decode())
        for name, group in groups.items():
            pattern = pattern.replace(re.escape(canonical(_mark(name)).decode()[1:-1]), group)
        self.match = re.compile(pattern).match
        self._keys = self._places(keys)

    def _places(self, keys: list[WrappedKey]) -> list[tuple[WrappedKey, slice, slice]]:
        """Tell where the octets of each key are when all are in one row, in the order in which the keys are read."""
        lengths = [octets for key in keys for octets in (len(key.identity), len(key.wrapped))]
        ends = list(accumulate(lengths))
        found = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        at = {key.role: (found[2 * place], found[2 * place + 1]) for place, key in enumerate(keys)}
        return [(key, *at[key.role]) for key in self.known.keys]

    def read(self, match: re.Match[str]) -> MeterEntry:
        """Give the entry that matched."""
        known = self.known
        address, *octets, serial, title = match.groups()
        row = bytes.fromhex("".join(octets))
        keys = tuple([type(key)(key.role, row[born], row[wrapped], key.under) for key, born, wrapped in self._keys])
        return type(known)(
            bytes.fromhex(title),
            serial,
            known.model,
            known.suite,
            known.security_setup,
            known.client,
            known.generation,
            known.state,
            address,
            known.group,
            known.revision,
            keys,
            known.certificates,
        )


class QuickReader:
    """Reads the entries of a package's content, and tells what stands around them."""

    def __init__(self, read_entry: ReadEntry) -> None:
        self._read_entry = read_entry
        self._readers: list[EntryReader] = []
        self._names: set[tuple[str, int, int, int]] = set()
        self._octets: list[str] = []
        self.entries: list[MeterEntry] = []
        self.around = ""
        """The content without its entries."""

    @property
    def known(self) -> tuple[MeterEntry, ...]:
        """One entry of each form."""
        return tuple(reader.known for reader in self._readers)

    def read(self, data: bytes) -> bool:
        """Read a content; False where it is left to the strict reader, as where a key or a name occurs twice."""
        try:
            text = data.decode("utf-8")
            start = text.index(_METERS) + len(_METERS)
            end = self._read_entries(text, start)
        except ValueError:
            return False
        self.around = text[:start] + text[end:]
        once = len(set(self._octets)) == len(self._octets) and len(self._names) == len(self.entries)
        return once and "\\" not in text

    def _read_entries(self, text: str, at: int) -> int:
        """Read up to the bracket behind the entries, and tell where it is; ValueError where that is not done here."""
        while True:
            found = next(((reader, match) for reader in self._readers if (match := reader.match(text, at))), None)
            reader, match = found or self._learn(text, at)
            known, (_, *octets, _, title) = reader.known, match.groups()
            self.entries.append(reader.read(match))
            self._octets += octets
            self._names.add((title, known.security_setup, known.client, known.generation))
            at = match.end()
            if text[at : at + 1] != ",":
                break
            at += 1
        if text[at : at + 1] != "]":
            raise ValueError("an entry of another form")
        return at

    def _learn(self, text: str, at: int) -> tuple[EntryReader, re.Match[str]]:
        """Read an entry strictly, and take its form for others."""
        value, end = parse_at(text, at)
        known = self._read_entry(value)
        reader = EntryReader(known) if known is not None else None
        match = reader.match(text, at) if reader else None
        if reader is None or match is None or match.end() != end or len(self._readers) == MOST_FORMS:
            raise ValueError("an entry of another form")
        self._readers.append(reader)
        return reader, match


def _mark(name: str) -> str:
    return f"\x01{name}\x01"
