"""A gate that many pass together and one now and then alone: a library is not initialised anew under its users."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Gate:
    """Whoever wants to be alone waits for those inside, and nobody enters until it has been."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._shut = False

    @contextmanager
    def among_others(self) -> Iterator[None]:
        """Be inside together with any number of others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def alone(self, wanted: Callable[[], bool], act: Callable[[], None]) -> None:
        """Act alone, unless somebody else did meanwhile and it is not wanted any more; the caller is not inside yet.

        Of many who want the same one acts: each in turn would wait for those inside, who are in long calls.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            if not wanted():
                return
            self._shut = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            act()
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()
