"""Lists of meters with the addresses at which they are reached: lines METER,HOST:PORT of any number.

A list is read line by line and never held, so that one of a million meters takes no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hsmkm.errors import Fault, InputError

MOST_FAULTS = 1000


class Place(NamedTuple):
    """A meter, by system title or serial number, and where it is reached."""

    name: str
    address: str


def read_places(path: Path) -> Iterator[Place]:
    """Read a list; InputError with its faults, the first 1,000, before anything of it is given."""
    count, faults = 0, []
    for number, line in _lines(path):
        if line.count(",") != 1:
            count += 1
            if count <= MOST_FAULTS:
                faults.append(Fault(str(path), number, 0, "must be METER,HOST:PORT"))
    if faults:
        raise InputError(f"{path} has {count} fault(s)", faults, "nothing was done")
    for _, line in _lines(path):
        name, _, address = line.partition(",")
        yield Place(name.strip(), address.strip())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read the lines that say something, with their numbers; InputError where the file cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {type(error).__name__}", hint="give a UTF-8 text file") from error
