"""A worker for processes that run for years: one that died, or lost its token, is replaced by a fresh one.

A call that was under way when its worker died is not repeated, since nobody knows what it did. A start that failed is
tried again after a pause, but never after a LoginError: a token locks itself after a few wrong PINs.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Concatenate, Generic, Self, TypeVar

from hsmkm.errors import HsmkmError, LoginError, TokenBusyError, TokenUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from hsmkm.token.workers import Worker

T = TypeVar("T")
R = TypeVar("R")

PAUSE_SECONDS = 2.0


class StandingWorker(Generic[T]):
    """Calls as `Worker.call` does, through the worker that `start` made last; the first one is started at once."""

    def __init__(self, start: Callable[[], Worker[T]], pause: float = PAUSE_SECONDS) -> None:
        self._start = start
        self._pause = pause
        self._lock = threading.Lock()
        self._failure: HsmkmError | None = None
        self._failed_at = 0.0
        self._closed = False
        self._worker = start()

    def call(self, function: Callable[Concatenate[T, ...], R], *args: object, deadline: float | None = None) -> R:
        """Run `function(context, *args)`; raises as `Worker.call`, or what starting a new worker raised."""
        worker = self._present()
        try:
            return worker.call(function, *args, deadline=deadline)
        except TokenBusyError:
            raise
        except TokenUnreachableError:
            self._discard(worker)
            raise

    def _present(self) -> Worker[T]:
        """Give the worker that runs, or start one, unless the last start failed a moment ago or must not be tried."""
        with self._lock:
            if self._worker.alive:
                return self._worker
            if self._closed:
                raise TokenUnreachableError("the token's worker was closed")
            if self._failure is not None and (isinstance(self._failure, LoginError) or self._pausing()):
                raise self._failure.with_traceback(None)
            try:
                self._worker = self._start()
            except HsmkmError as error:
                self._failure, self._failed_at = error, time.monotonic()
                raise
            self._failure = None
            return self._worker

    def _pausing(self) -> bool:
        return time.monotonic() < self._failed_at + self._pause

    def _discard(self, worker: Worker[T]) -> None:
        """End a worker whose token is gone: its handles are void, and what comes next begins with a new login."""
        with self._lock:
            if worker is self._worker:
                worker.end()

    def abandon(self) -> None:
        """End the worker in the midst of a call, from any thread; no other is started."""
        with self._lock:
            self._closed = True
            self._worker.abandon()

    def close(self) -> None:
        """Let the worker leave its context and end, if it still runs; no other is started."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            if self._worker.alive:
                self._worker.__exit__(kind, error, traceback)
            else:
                self._worker.end()
