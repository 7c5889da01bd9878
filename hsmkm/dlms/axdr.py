"""COSEM Data in A-XDR (IEC 62056-6-2 clause 4.1.5), for values that may come from a hostile meter.

Nesting is bounded by `MAX_DEPTH`, the number of values in one encoding by `MAX_VALUES`. compact-array is refused: a few
of its octets may stand for millions of values.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from hsmkm.dlms.octets import Octets, encode_counted, encode_length
from hsmkm.errors import InputError, ProtocolError

MAX_DEPTH = 16
MAX_VALUES = 65_536


class DataType(IntEnum):
    """Tags of the CHOICE Data."""

    NULL = 0
    ARRAY = 1
    STRUCTURE = 2
    BOOLEAN = 3
    BIT_STRING = 4
    DOUBLE_LONG = 5
    DOUBLE_LONG_UNSIGNED = 6
    OCTET_STRING = 9
    VISIBLE_STRING = 10
    UTF8_STRING = 12
    BCD = 13
    INTEGER = 15
    LONG = 16
    UNSIGNED = 17
    LONG_UNSIGNED = 18
    LONG64 = 20
    LONG64_UNSIGNED = 21
    ENUM = 22
    FLOAT32 = 23
    FLOAT64 = 24
    DATE_TIME = 25
    DATE = 26
    TIME = 27
    DONT_CARE = 255


Value = None | bool | int | float | bytes | str | tuple["Data", ...]

_SIGNED = {DataType.INTEGER: 1, DataType.BCD: 1, DataType.LONG: 2, DataType.DOUBLE_LONG: 4, DataType.LONG64: 8}
_UNSIGNED = {
    DataType.UNSIGNED: 1,
    DataType.ENUM: 1,
    DataType.LONG_UNSIGNED: 2,
    DataType.DOUBLE_LONG_UNSIGNED: 4,
    DataType.LONG64_UNSIGNED: 8,
}
_FLOAT = {DataType.FLOAT32: ">f", DataType.FLOAT64: ">d"}
_FIXED = {DataType.DATE_TIME: 12, DataType.DATE: 5, DataType.TIME: 4}
_TEXT = {DataType.VISIBLE_STRING: "ascii", DataType.UTF8_STRING: "utf-8"}
_EMPTY = (DataType.NULL, DataType.DONT_CARE)
_NESTED = (DataType.ARRAY, DataType.STRUCTURE)


@dataclass(frozen=True, slots=True)
class Data:
    """One COSEM value and its type; bit strings are text of 0 and 1. The representation never shows octets."""

    kind: DataType
    value: Value = None

    def octets(self) -> bytes:
        """The value of an octet-string; raises ProtocolError for another type."""
        if self.kind is DataType.OCTET_STRING and isinstance(self.value, bytes):
            return self.value
        raise ProtocolError(f"an octet-string was expected, not {self.name}")

    def integer(self) -> int:
        """The value of any integer or enum; raises ProtocolError for another type."""
        if (self.kind in _SIGNED or self.kind in _UNSIGNED) and isinstance(self.value, int):
            return self.value
        raise ProtocolError(f"an integer was expected, not {self.name}")

    def items(self) -> tuple[Data, ...]:
        """The elements of an array or structure; raises ProtocolError for another type."""
        if isinstance(self.value, tuple):
            return self.value
        raise ProtocolError(f"an array or structure was expected, not {self.name}")

    @property
    def name(self) -> str:
        """The type as the standard writes it."""
        return self.kind.name.lower().replace("_", "-")

    def __repr__(self) -> str:
        if isinstance(self.value, bytes):
            return f"Data({self.name}, {len(self.value)} octets)"
        return f"Data({self.name}, {self.value!r})"


def octet_string(value: bytes) -> Data:
    """An octet-string of any length."""
    return Data(DataType.OCTET_STRING, value)


def structure(*items: Data) -> Data:
    """A structure of the given elements."""
    return Data(DataType.STRUCTURE, items)


def array(*items: Data) -> Data:
    """An array of the given elements."""
    return Data(DataType.ARRAY, items)


def enum(value: int) -> Data:
    """An enum, one octet."""
    return Data(DataType.ENUM, int(value))


def double_long_unsigned(value: int) -> Data:
    """An unsigned integer of 4 octets."""
    return Data(DataType.DOUBLE_LONG_UNSIGNED, value)


def encode(data: Data) -> bytes:
    """Write a value with its tag; raises InputError if the value does not fit its type."""
    try:
        return bytes([data.kind]) + _encode_value(data.kind, data.value)
    except (OverflowError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise InputError(f"the value does not fit the type {data.name}") from error


def _encode_value(kind: DataType, value: Value) -> bytes:  # noqa: PLR0911 - one return for each kind of type
    if kind in _SIGNED and isinstance(value, int):
        return value.to_bytes(_SIGNED[kind], "big", signed=True)
    if kind in _UNSIGNED and isinstance(value, int):
        return value.to_bytes(_UNSIGNED[kind], "big")
    if kind in _FLOAT:
        return struct.pack(_FLOAT[kind], value)
    if kind in _NESTED and isinstance(value, tuple):
        return encode_length(len(value)) + b"".join(encode(item) for item in value)
    if kind in _TEXT and isinstance(value, str):
        return encode_counted(value.encode(_TEXT[kind]))
    if kind is DataType.OCTET_STRING and isinstance(value, bytes):
        return encode_counted(value)
    return _encode_rare(kind, value)


def _encode_rare(kind: DataType, value: Value) -> bytes:
    if kind in _EMPTY and value is None:
        return b""
    if kind is DataType.BOOLEAN and isinstance(value, bool):
        return bytes([value])
    if kind in _FIXED and isinstance(value, bytes) and len(value) == _FIXED[kind]:
        return value
    if kind is DataType.BIT_STRING and isinstance(value, str):
        padded = value + "0" * (-len(value) % 8)
        return encode_length(len(value)) + bytes(int(padded[at : at + 8], 2) for at in range(0, len(padded), 8))
    raise TypeError(kind)


def decode(octets: bytes) -> Data:
    """Read one value that fills all of `octets`; raises ProtocolError."""
    cursor = Octets(octets)
    data = decode_from(cursor)
    cursor.end()
    return data


def decode_from(cursor: Octets) -> Data:
    """Read one value and leave the cursor behind it; raises ProtocolError."""
    return _Decoder(cursor).value(0)


class _Decoder:
    """One decoding with its own bound on the number of values."""

    def __init__(self, cursor: Octets) -> None:
        self.cursor = cursor
        self.values = 0

    def value(self, depth: int) -> Data:
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise ProtocolError("the data is nested too deeply or holds too many values")
        tag = self.cursor.octet()
        try:
            kind = DataType(tag)
        except ValueError:
            raise ProtocolError(f"data of type {tag} is not supported") from None
        return Data(kind, self.content(kind, depth))

    def content(self, kind: DataType, depth: int) -> Value:  # noqa: PLR0911 - one return for each kind of type
        if kind in _SIGNED:
            return self.cursor.signed(_SIGNED[kind])
        if kind in _UNSIGNED:
            return self.cursor.unsigned(_UNSIGNED[kind])
        if kind in _NESTED:
            return self.nested(depth)
        if kind is DataType.OCTET_STRING:
            return self.cursor.counted()
        if kind in _TEXT:
            return self.text(kind)
        if kind in _FLOAT:
            number: float = struct.unpack(_FLOAT[kind], self.cursor.take(struct.calcsize(_FLOAT[kind])))[0]
            return number
        if kind in _FIXED:
            return self.cursor.take(_FIXED[kind])
        if kind is DataType.BOOLEAN:
            return self.cursor.flag()
        return self.bits() if kind is DataType.BIT_STRING else None

    def nested(self, depth: int) -> tuple[Data, ...]:
        count = self.cursor.length()
        if count > self.cursor.left:
            raise ProtocolError(f"{count} elements announced, {self.cursor.left} octets are there")
        return tuple(self.value(depth + 1) for _ in range(count))

    def text(self, kind: DataType) -> str:
        try:
            return self.cursor.counted().decode(_TEXT[kind])
        except UnicodeDecodeError:
            raise ProtocolError("a text holds octets outside of its character set") from None

    def bits(self) -> str:
        count = self.cursor.length()
        octets = self.cursor.take((count + 7) // 8)
        return "".join(f"{octet:08b}" for octet in octets)[:count]
