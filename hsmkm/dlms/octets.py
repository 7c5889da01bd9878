"""Reading octets that may be hostile: every length is checked against what is really there."""

from __future__ import annotations

from hsmkm.errors import ProtocolError

SHORT_FORM = 0x80
LONGEST_LENGTH_FIELD = 4


class Octets:
    """A cursor over received octets; every method raises ProtocolError where they end too early."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def left(self) -> int:
        """How many octets have not been read."""
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        """Read exactly `count` octets."""
        if count > self.left:
            raise ProtocolError(f"{count} octets announced, {self.left} are there")
        self._position += count
        return self._data[self._position - count : self._position]

    def octet(self) -> int:
        """Read one octet."""
        return self.take(1)[0]

    def peek(self) -> int:
        """Look at the next octet without reading it."""
        if not self.left:
            raise ProtocolError("the octets end too early")
        return self._data[self._position]

    def unsigned(self, octets: int) -> int:
        """Read a big-endian unsigned integer."""
        return int.from_bytes(self.take(octets), "big")

    def signed(self, octets: int) -> int:
        """Read a big-endian two's complement integer."""
        return int.from_bytes(self.take(octets), "big", signed=True)

    def length(self) -> int:
        """Read a length as A-XDR and BER write it, in its short form or its definite long form."""
        first = self.octet()
        if first < SHORT_FORM:
            return first
        size = first - SHORT_FORM
        if not 1 <= size <= LONGEST_LENGTH_FIELD:
            raise ProtocolError("a length field has 1 to 4 octets")
        return self.unsigned(size)

    def counted(self) -> bytes:
        """Read a length and as many octets."""
        return self.take(self.length())

    def flag(self) -> bool:
        """Read a boolean or the presence octet of an OPTIONAL field; only 0 is false."""
        return self.octet() != 0

    def rest(self) -> bytes:
        """Read all that is left."""
        return self.take(self.left)

    def end(self) -> None:
        """Raise ProtocolError if anything is left."""
        if self.left:
            raise ProtocolError(f"{self.left} octets too many")


def encode_length(value: int) -> bytes:
    """Write a length in its shortest form (A-XDR and BER agree)."""
    if value < SHORT_FORM:
        return bytes([value])
    octets = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([SHORT_FORM | len(octets)]) + octets


def encode_counted(value: bytes) -> bytes:
    """Write octets after their length."""
    return encode_length(len(value)) + value
