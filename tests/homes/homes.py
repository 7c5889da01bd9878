"""Homes that versions of this program wrote, kept as fixtures, and the PIN that opens their tokens.

The PIN stands here and in no home, and nothing depends on it: the keys were made for these fixtures alone.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from tests.realm import Realm

PIN = "0000-fixture-0000"
NAMES = ("authority", "factory", "utility")
DELIVERED = {1: 0, 2: 0, 3: 2}
UNDELIVERED = {4: 0, 5: 2}
"""Serial numbers with their suites: those of which the utility has the keys too, and those only the factory has."""

CHECKPOINT = "checkpoint.p7m"
MADE = "made"
"""A file of each fixture that says when it was made: its certificates and lists are of that day."""


def place_pins(folder: Path) -> None:
    """Put the PIN where the settings of each home look for it, as a person would."""
    for name in NAMES:
        token = folder / name / "token"
        token.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in ("pin", "so-pin"):
            (token / file).touch(0o600)
            (token / file).write_text(PIN + "\n", encoding="ascii")


def unpack(path: Path, folder: Path) -> Realm:
    """Unpack a fixture into a folder, and give its parties."""
    with tarfile.open(path) as archive:
        # Python 3.11 has filters since 3.11.4 only; the attribute is how its documentation serves both.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)  # noqa: S202 - a file of this repository
    place_pins(folder)
    return Realm(folder)
