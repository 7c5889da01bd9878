"""Finds what stands twice in a list of a million meters, in some 50 octets a meter at most."""

from __future__ import annotations

from array import array


class FirstLines:
    """The line on which each system title stood first: an open hash table of 12 octets a slot, at most 2/3 full.

    A dictionary takes 200 octets a meter. The hash is Python's of octets, whose key nobody knows outside the process.
    """

    def __init__(self, slots: int = 1024) -> None:
        self._titles = array("Q", bytes(8)) * slots
        self._lines = array("I", bytes(4)) * slots
        self._room = slots * 2 // 3

    def note(self, title: bytes, line: int) -> int:
        """Note that a title (8 octets) stands on a line, and give the line where it stood first."""
        slot = self._slot(title)
        if not self._lines[slot]:
            if not self._room:
                self._grow()
                slot = self._slot(title)
            self._titles[slot], self._lines[slot] = int.from_bytes(title, "big"), line
            self._room -= 1
        return self._lines[slot]

    def _slot(self, title: bytes) -> int:
        """Find where a title is, or the free slot where it may be put."""
        number, last = int.from_bytes(title, "big"), len(self._titles) - 1
        slot = hash(title) & last
        while self._lines[slot] and self._titles[slot] != number:
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        larger = FirstLines(2 * len(self._titles))
        for number, line in zip(self._titles, self._lines, strict=True):
            if line:
                larger.note(number.to_bytes(8, "big"), line)
        self._titles, self._lines, self._room = larger._titles, larger._lines, larger._room
