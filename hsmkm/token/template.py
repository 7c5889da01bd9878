"""Attribute templates, laid out in C memory once and used for every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pkcs11 import Attribute

from hsmkm.token import declared

if TYPE_CHECKING:
    from collections.abc import Mapping

ffi: Any = declared.ffi
ULONG_OCTETS: int = ffi.sizeof("CK_ULONG")
_UNREADABLE = frozenset({Attribute.VALUE, Attribute.UNWRAP_TEMPLATE})


class View(Protocol):
    """Octets in C memory: a slice of them is a copy in Python's."""

    def __getitem__(self, place: slice, /) -> bytes:
        """Copy octets."""


class Template:
    """A CK_ATTRIBUTE array with the memory it points into; the C side only reads it.

    Values are bool (one octet), int (CK_ULONG), bytes, a Template (for UNWRAP_TEMPLATE), or a cffi buffer, which stays
    with its owner: a key's value is never copied here.
    """

    __slots__ = ("_keep", "array", "attributes", "count", "expected")

    def __init__(self, attributes: Mapping[Attribute, Value]) -> None:
        self.attributes = frozenset(attributes)
        self.count = len(attributes)
        self.array = ffi.new("CK_ATTRIBUTE[]", max(self.count, 1))
        self._keep: list[Any] = []
        self.expected: dict[Attribute, bytes] = {}
        for position, (attribute, value) in enumerate(attributes.items()):
            memory, octets = self._lay_out(value)
            self._keep.append(memory)
            item = self.array[position]
            item.type, item.pValue, item.ulValueLen = int(attribute), memory, octets
            if attribute not in _UNREADABLE:
                self.expected[attribute] = bytes(ffi.buffer(memory, octets))

    @staticmethod
    def _lay_out(value: Value) -> tuple[Any, int]:
        if isinstance(value, Template):
            return value.array, value.count * ffi.sizeof("CK_ATTRIBUTE")
        if isinstance(value, bool):
            return ffi.new("unsigned char *", int(value)), 1
        if isinstance(value, int):
            return ffi.new("CK_ULONG *", int(value)), ULONG_OCTETS
        if isinstance(value, bytes):
            return ffi.new("unsigned char[]", value), len(value)
        return value, ffi.sizeof(value)


Value: TypeAlias = "bool | int | bytes | Template | Any"


def wipe(memory: Any) -> None:  # noqa: ANN401 - cffi has no types
    """Overwrite a cffi array with zeros."""
    ffi.memmove(memory, b"\0" * ffi.sizeof(memory), ffi.sizeof(memory))
