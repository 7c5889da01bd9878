"""Leases that this process could not give back, because the store was away: nobody speaks under them any more.

A lease names its process as holder, and lasts as long as that runs. Without this record a meter whose lease was not
given back would wait for its expiry, although the one process that could speak with it knows that it does not.
"""

from __future__ import annotations

import threading


class Unreturned:
    """Meters by store and system title; whoever takes such a lease anew takes it off the list, at most once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: set[tuple[str, bytes]] = set()

    def add(self, store: str, system_title: bytes) -> None:
        """Take note that a lease was not given back, as far as is known."""
        with self._lock:
            self._known.add((store, system_title))

    def take(self, store: str, system_title: bytes) -> bool:
        """Tell whether it was noted, and forget it; called in the transaction that takes the lease anew."""
        with self._lock:
            found = (store, system_title) in self._known
            self._known.discard((store, system_title))
            return found
