"""Whose turn it is at a meter: the head end's through the relay, or the concentrator's own.

A meter keeps one invocation counter for a key, whoever uses it. Two clients that speak under one GUEK at once would
make each other's requests stale in the midst of an association, so they take turns: as long as a connection of the head
end to a meter is open, the concentrator does not read it, and a connection of the head end waits for a reading to end.
"""

from __future__ import annotations

import threading
from collections import Counter


class Turns:
    """Counts the head end's connections to each meter (8 octets), and knows which are being read; for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._relayed: Counter[bytes] = Counter()
        self._read: set[bytes] = set()

    def begin_relaying(self, title: bytes) -> bool:
        """Take a turn for the head end, which may have several at once; False while the meter is being read."""
        with self._lock:
            if title in self._read:
                return False
            self._relayed[title] += 1
            return True

    def end_relaying(self, title: bytes) -> None:
        """Give one of the head end's turns back."""
        with self._lock:
            self._relayed[title] -= 1
            if not self._relayed[title]:
                del self._relayed[title]

    def begin_reading(self, title: bytes) -> bool:
        """Take the turn for a reading; False while it is somebody else's."""
        with self._lock:
            if title in self._read or title in self._relayed:
                return False
            self._read.add(title)
            return True

    def end_reading(self, title: bytes) -> None:
        """Give the reading's turn back."""
        with self._lock:
            self._read.discard(title)
