"""What befell the meters of a fleet, and two counts that must be 0: counters seen twice, two at work on one meter."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

EXCHANGES, CONNECTIONS, NEW_KEYS = "exchanges", "connections", "new-keys"
TWICE, TWO_AT_ONCE = "counters-twice", "two-associations-at-once"
MOST_RUNS = 256
"""So many runs of counters are remembered of a meter; the oldest are forgotten then, and may come again unnoticed."""

_RUN = struct.Struct(">4sII")


class Heard:
    """The invocation counters that came to one meter under each of its GUEKs, as runs of consecutive values.

    Raises ValueError for octets that are not such runs.
    """

    def __init__(self, packed: bytes = b"") -> None:
        if len(packed) % _RUN.size:
            raise ValueError("a run of counters is cut off")
        self._runs = [list(run) for run in _RUN.iter_unpack(packed)]

    def is_new(self, guek: bytes, counter: int) -> bool:
        """Take a counter, and tell whether it is the first time under this key."""
        key = hashlib.blake2b(guek, digest_size=4).digest()
        mine = [run for run in self._runs if run[0] == key]
        if any(low <= counter <= high for _, low, high in mine):
            return False
        for run in reversed(mine):
            if counter in (run[1] - 1, run[2] + 1):
                run[1], run[2] = min(run[1], counter), max(run[2], counter)
                return True
        self._runs = [*self._runs[1 - MOST_RUNS :], [key, counter, counter]]
        return True

    def packed(self) -> bytes:
        """Give what a meter's next connection takes up again."""
        return b"".join(_RUN.pack(*run) for run in self._runs)


@dataclass(slots=True)
class Tally:
    """Counts by what happened: of all meters, and of each to which something out of the ordinary did."""

    totals: Counter[str] = field(default_factory=Counter)
    by_meter: dict[int, dict[str, int]] = field(default_factory=dict)

    def count(self, what: str) -> None:
        """Count what is ordinary."""
        self.totals[what] += 1

    def befell(self, meter: int, what: str) -> None:
        """Count what befell a meter."""
        self.totals[what] += 1
        mine = self.by_meter.setdefault(meter, {})
        mine[what] = mine.get(what, 0) + 1

    def lines(self, title: Callable[[int], str], fleet: dict[str, int]) -> Iterator[str]:
        """Write a line of JSON with the totals, and one for each meter that something befell."""
        counts = {TWICE: 0, TWO_AT_ONCE: 0, **self.totals}
        yield json.dumps({**fleet, **dict(sorted(counts.items()))}) + "\n"
        for number, mine in sorted(self.by_meter.items()):
            yield json.dumps({"meter": title(number), "number": number, **mine}) + "\n"
