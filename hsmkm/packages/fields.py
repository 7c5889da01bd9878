"""Reading the members of a JSON object one by one, collecting everything that is wrong instead of the first."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Collection
from datetime import UTC, datetime

from hsmkm.packages.strict_json import Value
from hsmkm.pki.certificates import is_title

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_TIME_FORM = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)
_LAST = datetime.max.replace(tzinfo=UTC)


def time_text(moment: datetime) -> str:
    """Return the RFC 3339 form in UTC and whole seconds."""
    return moment.astimezone(UTC).strftime(_TIME)


class Fields:
    """The members of one object: each reader checks one member and notes what is wrong under its path.

    A reader returns a harmless value of its type for a wrong member, so that the reading goes on; whoever uses the
    values looks at `faults` first.
    """

    def __init__(self, value: Value, path: str, faults: list[str]) -> None:
        self._path = path
        self.faults = faults
        self._members: dict[str, Value] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            self.wrong("", "is not an object")

    def wrong(self, name: str, text: str) -> None:
        """Note a fault of a member, or of the object itself where the name is empty."""
        place = ".".join(part for part in (self._path, name) if part)
        self.faults.append(f"{place} {text}")

    def exactly(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Note every member that is missing and every one that has no place."""
        for name in required:
            if name not in self._members:
                self.wrong(name, "is missing")
        for name in self._members.keys() - {*required, *optional}:
            self.wrong(name[:40], "has no place here")

    def has(self, name: str) -> bool:
        """Whether the member is there."""
        return name in self._members

    def value(self, name: str) -> Value:
        """Return the member as it is; None where it is missing."""
        return self._members.get(name)

    def inner(self, name: str) -> Fields:
        """Return the members of an object within."""
        return Fields(self._members.get(name, {}), ".".join(part for part in (self._path, name) if part), self.faults)

    def text(self, name: str, longest: int = 64, *, empty: bool = False) -> str:
        """Read printable text of at most `longest` characters."""
        value = self._members.get(name, "-")
        if not isinstance(value, str) or len(value) > longest or not value.isprintable() or not (value or empty):
            self.wrong(name, f"is not printable text of {0 if empty else 1} to {longest} characters")
            return ""
        return value

    def one_of(self, name: str, allowed: Collection[str]) -> str:
        """Read one of a few words."""
        value = self._members.get(name)
        if not isinstance(value, str) or value not in allowed:
            if name in self._members:
                self.wrong(name, f"is none of {', '.join(allowed)}")
            return next(iter(allowed))
        return value

    def integer(self, name: str, lowest: int, highest: int) -> int:
        """Read a whole number within bounds."""
        value = self._members.get(name, lowest)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            self.wrong(name, f"is not a whole number between {lowest} and {highest}")
            return lowest
        return value

    def title(self, name: str, *, empty: bool = False) -> bytes:
        """Read a system title: 16 hex digits in capitals, or nothing where that is allowed."""
        value = self._members.get(name, "")
        if isinstance(value, str) and (is_title(value) or (empty and not value)):
            return bytes.fromhex(value)
        if name in self._members:
            self.wrong(name, "is not a system title of 16 hex digits in capitals")
        return b""

    def octets(self, name: str, *lengths: int) -> bytes:
        """Read hex digits in small letters that stand for exactly as many octets as one of `lengths` says."""
        value = self._members.get(name)
        digits = [2 * length for length in lengths]
        if isinstance(value, str) and len(value) in digits and re.fullmatch(r"[0-9a-f]*", value, re.ASCII):
            return bytes.fromhex(value)
        if name in self._members:
            self.wrong(name, f"is not {' or '.join(map(str, lengths))} octets in hex with small letters")
        return b""

    def base64(self, name: str, longest: int) -> bytes:
        """Read canonical base64 of at most `longest` octets."""
        found = decode_base64(self._members.get(name, ""), longest)
        if found is None:
            self.wrong(name, f"is not base64 of 1 to {longest} octets")
        return found or b""

    def uuid(self, name: str) -> str:
        """Read a UUID in its usual form with small letters."""
        value = self._members.get(name)
        try:
            if isinstance(value, str) and str(uuid.UUID(value)) == value:
                return value
        except ValueError:
            pass
        if name in self._members:
            self.wrong(name, "is not a UUID")
        return ""

    def time(self, name: str) -> datetime:
        """Read an RFC 3339 time in UTC and whole seconds."""
        value = self._members.get(name)
        try:
            if isinstance(value, str) and _TIME_FORM.fullmatch(value):
                return datetime.strptime(value, _TIME).replace(tzinfo=UTC)
        except ValueError:
            pass
        if name in self._members:
            self.wrong(name, "is not a time like 2026-01-31T12:00:00Z")
        return _LAST


def decode_base64(value: Value, longest: int) -> bytes | None:
    """Decode base64 that is canonical and within bounds; None where it is not."""
    if not isinstance(value, str) or not 0 < len(value) <= 4 * (longest // 3 + 1):
        return None
    try:
        found = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if base64.b64encode(found).decode("ascii") == value else None
