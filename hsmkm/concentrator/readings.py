"""Where a concentrator's readings go: JSON lines in a file that is bounded, with some older ones behind it.

Each line is one attribute of one meter: `time`, `meter`, `obis`, `class`, `attribute` and either `generation`, `type`
and `value` or the `error` that says why there is none. A line is on the disk before the next meter is read. A file that
has grown to its bound is renamed to NAME.1, that one to NAME.2 and so on; the oldest goes. The files may be read, moved
or deleted at any time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hsmkm.errors import InputError

Line = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ReadingsFile:
    """A file of at most `octets`, give or take one meter's lines, and `files` older ones behind it; mode 0600."""

    path: Path
    octets: int
    files: int

    def write(self, lines: Sequence[Line]) -> None:
        """Append lines durably; InputError where the system does not take them."""
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        try:
            self._append(text)
        except OSError as error:
            raise InputError(
                f"cannot write readings to {self.path}: {error.strerror}", hint="see whether the disk has room"
            ) from error

    def _append(self, text: bytes) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._turn_over()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(text)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _turn_over(self) -> None:
        if not self.path.exists() or self.path.stat().st_size < self.octets:
            return
        for number in range(self.files, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        if not self.files:
            self.path.unlink()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path
