"""JSON that leaves no room: no duplicate names, no floats, whole numbers within 2**53 - 1, Unicode without surrogates.

What is written is the canonical form of RFC 8785, which for strings, whole numbers, arrays and objects with ASCII names
is what the standard library writes with sorted names and no spaces.
"""

from __future__ import annotations

import json
from typing import NoReturn, TypeAlias

from hsmkm.errors import InputError

Value: TypeAlias = "bool | int | str | list[Value] | dict[str, Value] | None"

MAX_INTEGER = 2**53 - 1
_MAX_DIGITS = 16


def canonical(value: object) -> bytes:
    """Return the RFC 8785 form; the caller gives strings, whole numbers, lists and dictionaries only."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def parse(data: bytes, limit: int, what: str) -> Value:
    """Parse at most `limit` octets of JSON; raise InputError."""
    if len(data) > limit:
        raise InputError(f"{what} is larger than {limit} octets")
    try:
        value: Value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_refuse,
            parse_constant=_refuse,
        )
        if b"\\ud" in data.lower():  # only an escape can name half of a character, which no encoding writes
            canonical(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not strict JSON: {_first_line(error)}") from error
    return value


def parse_at(text: str, at: int) -> tuple[Value, int]:
    """Parse the value that begins at a place of a text without escapes, and tell where it ends; ValueError."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value, end


def _object(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS or abs(int(text)) > MAX_INTEGER or text == "-0":
        raise ValueError("a number is out of range")
    return int(text)


def _refuse(_text: str) -> NoReturn:
    raise ValueError("a number is not a whole one")


def _first_line(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "not UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_refuse, parse_constant=_refuse)
