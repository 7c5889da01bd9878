"""COSEM attributes and values, and associations, as people write them."""

from __future__ import annotations

from typing import Annotated

import typer

from hsmkm.dlms.axdr import Data
from hsmkm.dlms.types import AttributeRef, LogicalName
from hsmkm.errors import InputError
from hsmkm.reading_settings import ATTRIBUTE

In = Annotated[str, typer.Option("--association", help="In which association of its model; by default the first.")]

REGISTER_CLASS = 3
VALUE_ATTRIBUTE = 2


def attribute(text: str) -> AttributeRef:
    """Read [CLASS:]OBIS[:ATTRIBUTE]; OBIS has six groups, or five with 255 for the last."""
    match = ATTRIBUTE.fullmatch(text)
    if not match:
        raise InputError(f"{text!r} names no attribute", hint="for example 1.0.1.8.0.255, or 3:1.0.1.8.0.255:2")
    name = match[2] if match[2].count(".") == 5 else f"{match[2]}.255"  # noqa: PLR2004 - six groups
    return AttributeRef(int(match[1] or REGISTER_CLASS), LogicalName.parse(name), int(match[3] or VALUE_ATTRIBUTE))


def shown(data: Data) -> str:
    """Write a value for people: octets in hex, arrays and structures in brackets."""
    if isinstance(data.value, tuple):
        return "[" + ", ".join(shown(item) for item in data.value) + "]"
    return data.value.hex().upper() if isinstance(data.value, bytes) else str(data.value)
