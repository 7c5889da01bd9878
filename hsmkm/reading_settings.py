"""What a concentrator reads of its meters by itself: the section `concentrator.reading` of hsmkm.toml as values."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hsmkm.bounds import DAY, YEAR, outside

ATTRIBUTE = re.compile(r"(?:([0-9]{1,5}):)?([0-9]{1,3}(?:\.[0-9]{1,3}){4,5})(?::([0-9]{1,3}))?")
"""[CLASS:]OBIS[:ATTRIBUTE], an attribute of a COSEM object as people write it."""


@dataclass(frozen=True, slots=True)
class ReadingSettings:
    """What a concentrator of kind client reads of its meters every so many `seconds`; without `attributes`, nothing.

    An attribute is [CLASS:]OBIS[:ATTRIBUTE]. `meter_seconds` is how long one meter may take. The readings go to `file`,
    relative to the home folder, which is renamed when it has `file_octets`; `files` older ones are kept.
    """

    attributes: tuple[str, ...] = ()
    seconds: int = 900
    meter_seconds: int = 60
    file: str = "readings/readings.jsonl"
    file_octets: int = 16 * 1024 * 1024
    files: int = 8

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        found = [
            ("attributes", f"{text!r} is no attribute: write for example 1.0.1.8.0.255, or 3:1.0.1.8.0.255:2")
            for text in self.attributes
            if not _is_attribute(text)
        ]
        found += outside(self, {"seconds": YEAR, "meter_seconds": DAY, "file_octets": 1 << 40})
        if not self.file:
            found.append(("file", "must name a file"))
        return found + outside(self, {"files": 10_000}, least=0)


def _is_attribute(text: str) -> bool:
    match = ATTRIBUTE.fullmatch(text)
    if match is None:
        return False
    bounds = ((match[1], 0xFFFF), (match[3], 0x7F), *((group, 0xFF) for group in match[2].split(".")))
    return all(int(number or 0) <= bound for number, bound in bounds)
