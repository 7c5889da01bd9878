"""Parsers that are broken on purpose, one for each thing that the harness must see."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hsmkm.errors import ProtocolError
from tests.faults.fuzz_parsers import PROTOCOL, Parser

SEED = b"\x02\x03abc"


def _checked(octets: bytes) -> bytes:
    """Read a tag and a length, as the broken ones do."""
    if len(octets) < len(b"\x02\x03"):
        raise ProtocolError("cut short")
    if octets[0] != SEED[0]:
        raise ProtocolError("not the tag")
    return octets


def _believes_a_length(octets: bytes) -> int:
    """Look at the last octet that the length promises, without asking whether it is there."""
    return _checked(octets)[1 + octets[1]]


def _never_ends(octets: bytes) -> int:
    """Step by a length that may be nothing."""
    place = len(_checked(octets)) - len(octets)
    while place < len(octets):
        place += octets[1]
    return place


def _takes_room(octets: bytes) -> bytearray:
    """Make room for what a length of four octets announces."""
    return bytearray(int.from_bytes(_checked(octets)[1:5], "big"))


def _nests(octets: bytes) -> bytes:
    """Go down as deep as the input does."""
    return _nests(octets[2:]) if _checked(octets)[1] == 1 else octets


def _hides(octets: bytes) -> int:
    """Fail behind octets that nobody guesses at once: each that is right leads to new code."""
    if _checked(octets)[1] == ord("D") and octets[2:]:  # noqa: SIM102 - a step for each octet
        if octets[2] == ord("L"):
            return octets[9]
    return 0


BROKEN: Mapping[str, Callable[[bytes], object]] = {
    "believes a length": _believes_a_length,
    "never ends": _never_ends,
    "takes room": _takes_room,
    "nests": _nests,
}
HIDDEN: Mapping[str, Callable[[bytes], object]] = {"hides": _hides}
"""What only coverage leads to."""


def broken(kinds: Mapping[str, Callable[[bytes], object]]) -> tuple[Parser, ...]:
    """List them as parsers."""
    return tuple(Parser(f"broken: {name}", parse, PROTOCOL, lambda: (SEED,)) for name, parse in kinds.items())
