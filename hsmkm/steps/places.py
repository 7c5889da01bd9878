"""Lists of meters with the addresses at which they are reached: lines METER,HOST:PORT of any number.

A list is read line by line and never held, so that one of a million meters takes no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from hsmkm.errors import Fault, InputError

MOST_FAULTS = 1000
LONGEST_LINE = 1024
"""Characters of a line; one that is longer is a fault, however its pieces look."""


class Place(NamedTuple):
    """A meter, by system title or serial number, and where it is reached."""

    name: str
    address: str


def read_places(path: Path) -> Iterator[Place]:
    """Read a list; InputError with its faults, the first 1,000, before anything of it is given, and for a pipe."""
    try:
        with path.open(encoding="utf-8") as file:
            if not file.seekable():
                raise InputError(f"{path} is no file, and is read twice", hint="give the list as a file")
            _refuse_faults(path, file)
            file.seek(0)
            for _, line in _lines(file):
                name, _, address = line.partition(",")
                yield Place(name.strip(), address.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {type(error).__name__}", hint="give a UTF-8 text file") from error


def _refuse_faults(path: Path, file: TextIO) -> None:
    count, faults = 0, []
    for number, line in _lines(file):
        if line.count(",") != 1 or len(line) == LONGEST_LINE:
            count += 1
            if count <= MOST_FAULTS:
                faults.append(Fault(str(path), number, 0, "must be METER,HOST:PORT"))
    if faults:
        raise InputError(f"{path} has {count} fault(s)", faults, "nothing was done")


def _lines(file: TextIO) -> Iterator[tuple[int, str]]:
    """Read the lines that say something, with their numbers."""
    every = iter(lambda: file.readline(LONGEST_LINE), "")
    return ((number, line) for number, line in enumerate(every, 1) if line.strip())
