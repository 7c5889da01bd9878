"""One octet string for one list of values: what MACs, digests and the audit chain are made over.

Each value is a tag octet, its length in 4 octets (big endian) and its content, so that no two lists encode alike:
`b` octets, `s` UTF-8 text, `i` an integer in two's complement (as many octets as it needs), `n` nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeAlias

from hsmkm.errors import IntegrityError

Value: TypeAlias = bytes | str | int | None

MECHANISM = "hmac-sha256"
"""How the integrity key makes a MAC; part of what is authenticated, so that it can change with a key's number."""


def encode(label: str, *values: Value) -> bytes:
    """Encode `values` under a label that names their kind and version."""
    return b"".join(map(item, (label, *values)))


def canonical_json(value: Mapping[str, object]) -> str:
    """Write JSON in one way only: names sorted, no spaces, UTF-8 as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def item(value: Value) -> bytes:
    """Encode one value: its tag, its length and its content.

    Raises IntegrityError for what is none: SQLite keeps in a column whatever somebody writes into its file.
    """
    if isinstance(value, bytes):
        return b"b" + len(value).to_bytes(4, "big") + value
    if isinstance(value, int) and not 0 <= value < len(_SMALL):
        return _number(value)
    if isinstance(value, int):
        return _SMALL[value]
    if value is None:
        return b"n\0\0\0\0"
    if not isinstance(value, str):
        raise IntegrityError("a stored value is of a kind that is never stored")
    content = value.encode()
    return b"s" + len(content).to_bytes(4, "big") + content


def _number(value: int) -> bytes:
    content = int(value).to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
    return b"i" + len(content).to_bytes(4, "big") + content


_SMALL = tuple(map(_number, range(256)))
