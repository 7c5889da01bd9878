"""Ctrl-C on work with many meters: it ends between two of them, and what was done is shown."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from hsmkm.cli.frame import talk

T = TypeVar("T")


class Interruption:
    """Whether the user asked to end; the second time ends at once. `stop` is called the first time."""

    def __init__(self, stop: Callable[[], None] = lambda: None) -> None:
        self.asked = False
        self._stop = stop

    def gather(self, items: Generator[T, None, None]) -> list[T]:
        """Take items as they come, until there are no more or the user asks to end."""
        found: list[T] = []
        with self.listening():
            for item in items:
                found.append(item)
                if self.asked:
                    break
            items.close()
        return found

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM for as long as the block lasts."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self) -> None:
        """Raise KeyboardInterrupt where the user asked to end."""
        if self.asked:
            raise KeyboardInterrupt

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.end()
        self.asked = True
        self._stop()
        talk("ending after the meters that are under way; interrupt again to end at once")
