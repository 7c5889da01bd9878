"""Entries of a package in bulk: JSON as `MeterEntry` writes it, of which all that meters share is written once.

Nothing is written here that the recipient's strict reading would refuse: the first entry of each form and every entry
with an unusual serial number are read back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace

from hsmkm.packages.content import (
    IDENTITY_OCTETS,
    WRAP_OVERHEAD,
    MeterEntry,
    PackageContent,
    PackageHeader,
    Purpose,
    WrappedKey,
    parse_content,
    under,
)
from hsmkm.packages.strict_json import canonical
from hsmkm.token.types import MeterRole

_USUAL = re.compile(r"[0-9A-Za-z]{1,32}")
_MARK = "\x01"
_METERS = b'"meters":[]'


class EntryWriter:
    """Writes entries of one form: everything but the title, the serial number and the keys is the first entry's."""

    between = ","

    def __init__(self, purpose: Purpose, like: MeterEntry, keys: Sequence[tuple[MeterRole, int]]) -> None:
        self._purpose = purpose
        self._like = like
        self._keys = tuple(keys)
        document = like.document() | {"serial": _MARK, "system_title": _MARK}
        if keys:
            document["keys"] = {
                role.value: {"identity": _MARK, "wrapped": _MARK, "under": under(purpose, role).value}
                for role, _ in keys
            }
        self._parts = canonical(document).decode().split(json.dumps(_MARK)[1:-1])
        lengths = [octets + WRAP_OVERHEAD for _, octets in keys]
        named = sorted(range(len(lengths)), key=lambda place: keys[place][0].value)
        self._places = [
            (slice(place * IDENTITY_OCTETS, (place + 1) * IDENTITY_OCTETS), _slice(lengths, place)) for place in named
        ]

    def write(self, system_title: bytes, serial: str, identities: bytes, travelling: bytes) -> str:
        """Write an entry; the keys stand in `identities` (16 octets each) and `travelling`, wrapped, in their order."""
        values: list[str] = []
        for identity, wrapped in self._places:
            values += (identities[identity].hex(), travelling[wrapped].hex())
        text = serial if _USUAL.fullmatch(serial) else json.dumps(serial, ensure_ascii=False)[1:-1]
        values += (text, system_title.hex().upper())
        parts = self._parts
        return "".join([part for pair in zip(parts, values, strict=False) for part in pair]) + parts[-1]

    def entry(self, system_title: bytes, serial: str, identities: bytes, travelling: bytes) -> MeterEntry:
        """Give the same as a value."""
        lengths = [octets + WRAP_OVERHEAD for _, octets in self._keys]
        keys = tuple(
            WrappedKey(
                role,
                identities[place * IDENTITY_OCTETS : (place + 1) * IDENTITY_OCTETS],
                travelling[_slice(lengths, place)],
                under(self._purpose, role),
            )
            for place, (role, _) in enumerate(self._keys)
        )
        return replace(self._like, system_title=system_title, serial=serial, keys=keys)


def is_usual(serial: str) -> bool:
    """Whether nothing in a serial number could be read in two ways."""
    return _USUAL.fullmatch(serial) is not None


def join(header: PackageHeader, recipient_info: bytes, entries: Sequence[str], probes: Sequence[str]) -> bytes:
    """Write the content of a package of these entries, after reading back what its `probes` alone would be.

    Raises InputError for what `parse_content` would refuse.
    """
    before, _, after = _frame(header, recipient_info).partition(_METERS)
    for part in (probes, entries):
        content = before + b'"meters":[' + ",".join(part).encode() + b"]" + after
        if part is probes:
            parse_content(content)
    return content


def _frame(header: PackageHeader, recipient_info: bytes) -> bytes:
    return canonical(PackageContent(header, recipient_info, ()).document())


def _slice(lengths: Sequence[int], place: int) -> slice:
    start = sum(lengths[:place])
    return slice(start, start + lengths[place])
