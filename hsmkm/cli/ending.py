"""Ctrl-C on work with many meters: it ends between two of them, and what was done is shown."""

from __future__ import annotations

import signal
from collections.abc import Generator
from types import FrameType
from typing import TypeVar

from hsmkm.cli.frame import talk

T = TypeVar("T")


class Interruption:
    """Whether the user asked to end; the second time ends at once."""

    def __init__(self) -> None:
        self.asked = False

    def gather(self, items: Generator[T, None, None]) -> list[T]:
        """Take items as they come, until there are no more or the user asks to end."""
        found: list[T] = []
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for item in items:
                found.append(item)
                if self.asked:
                    break
            items.close()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return found

    def end(self) -> None:
        """Raise KeyboardInterrupt where the user asked to end."""
        if self.asked:
            raise KeyboardInterrupt

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.end()
        self.asked = True
        talk("ending after the meters that are under way; interrupt again to end at once")
