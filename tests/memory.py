"""How much memory some work takes at its peak, by what Python allocates: it does not depend on the machine's load."""

from __future__ import annotations

import gc
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable


def peak_of(work: Callable[[], object]) -> int:
    """Run some work, and give the octets at its peak above those that were there before; what it returns counts."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = work()
        _, highest = tracemalloc.get_traced_memory()
        del kept
        return highest - before
    finally:
        tracemalloc.stop()


def read_through(items: Iterable[object]) -> None:
    """Take every item and keep none."""
    deque(items, maxlen=0)
