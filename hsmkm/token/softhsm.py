"""SoftHSM's files: its configuration, and a second copy of the one file whose loss would be the loss of every key.

SoftHSM 2.6 rewrites `token.object` at each login, in place: it is cut to nothing and then written. A crash or a full
disk between the two leaves a token that is not found again. So before each login a copy is made beside it, or, where
the file is not whole, the copy takes its place. The file holds the PINs' encryption of the token's own key; an object
has a file of its own, which no login writes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

REWRITTEN = "token.object"
COPY = "token.object.kept"

_WORD = 8
_BOOLEAN, _NUMBER, _OCTETS = 1, 2, 3
_LEAST_ATTRIBUTES = 4
"""Label, serial number, flags, and the token's key under the PIN of the security officer."""


def keep_token_file(home: Path) -> None:
    """Copy each token's file, or put its copy in its place where it is not whole; under the lock of logins.

    Raises OSError where the folder cannot be written.
    """
    for path in (home / "token" / "tokens").glob(f"*/{REWRITTEN}"):
        kept = path.with_name(COPY)
        now, before = path.read_bytes(), kept.read_bytes() if kept.exists() else b""
        if not is_whole(now):
            if is_whole(before):
                _replace(path, before)
        elif now[_WORD:] != before[_WORD:]:
            _replace(kept, now)


def is_whole(octets: bytes) -> bool:
    """Tell whether a token's file is complete: a generation, then attributes, each type, kind and value (8 octets).

    An array, which a token has none of, counts as not whole.
    """
    place, count = _WORD, 0
    while place < len(octets):
        kind = int.from_bytes(octets[place + _WORD : place + 2 * _WORD])
        place += 2 * _WORD
        if kind == _BOOLEAN:
            place += 1
        elif kind == _NUMBER:
            place += _WORD
        elif kind == _OCTETS:
            place += _WORD + int.from_bytes(octets[place : place + _WORD])
        else:
            return False
        count += 1
    return place == len(octets) and count >= _LEAST_ATTRIBUTES


def _replace(path: Path, octets: bytes) -> None:
    temporary = path.with_name(f"{path.name}.new")
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
