"""The TCP wrapper (IEC 62056-4-7): version 1, source and destination port, length, two octets each, then the APDU."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from hsmkm.errors import ProtocolError

VERSION = 1
HEADER_OCTETS = 8
LONGEST_APDU = 0xFFFF

_HEADER = struct.Struct(">HHHH")


@dataclass(frozen=True, slots=True)
class Frame:
    """One APDU with the ports (SAPs) it goes from and to."""

    source: int
    destination: int
    apdu: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Write the frame; raises ProtocolError for an APDU of 0 or more than 65,535 octets."""
        if not 1 <= len(self.apdu) <= LONGEST_APDU:
            raise ProtocolError(f"an APDU of {len(self.apdu)} octets does not fit a frame")
        return _HEADER.pack(VERSION, self.source, self.destination, len(self.apdu)) + self.apdu


class Decoder:
    """Takes octets as they come and gives whole frames; a header that is refused ends the stream."""

    def __init__(self, longest_apdu: int = LONGEST_APDU) -> None:
        self._longest = longest_apdu
        self._waiting = bytearray()

    @property
    def waiting(self) -> int:
        """How many octets of an unfinished frame have come."""
        return len(self._waiting)

    def feed(self, octets: bytes) -> list[Frame]:
        """Give the frames that are complete now; raises ProtocolError for a wrong version or length."""
        self._waiting += octets
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        if len(self._waiting) < HEADER_OCTETS:
            return None
        version, source, destination, length = _HEADER.unpack_from(self._waiting)
        if version != VERSION:
            raise ProtocolError(f"wrapper version {version} is not 1")
        if not 1 <= length <= self._longest:
            raise ProtocolError(f"a frame announces an APDU of {length} octets")
        end = HEADER_OCTETS + length
        if len(self._waiting) < end:
            return None
        apdu = bytes(self._waiting[HEADER_OCTETS:end])
        del self._waiting[:end]
        return Frame(source, destination, apdu)
