"""MACs of rows that this process made or verified lately: what fitted once fits again, and need not go to the token.

Kept are digests over a row's encoding with its MAC, so another content, or another MAC, is another entry and is
verified. Nothing here says that a row is the newest one: the sums of the store's state do.
"""

from __future__ import annotations

import hashlib

from hsmkm.token.types import Mac

MOST = 20_000
"""Digests that are kept, some 100 octets each."""


class KnownMacs:
    """A set of digests that forgets everything when it is full; any number of threads use it."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, data: bytes, mac: Mac) -> None:
        """Remember that a MAC fits its data."""
        if len(self._digests) >= MOST:
            self._digests.clear()
        self._digests.add(_digest(data, mac))

    def holds(self, data: bytes, mac: Mac) -> bool:
        """Tell whether this MAC is known to fit this data."""
        return _digest(data, mac) in self._digests


def _digest(data: bytes, mac: Mac) -> bytes:
    head = b"".join(number.to_bytes(8, "big", signed=True) for number in (mac.key_number, len(mac.value)))
    return hashlib.sha256(head + mac.value + data).digest()
