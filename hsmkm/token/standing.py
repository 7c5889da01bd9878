"""A worker for processes that run for years: one that died, or lost its token, is replaced by a fresh one.

A call that broke is not repeated, since nobody knows what it did. What it says of its worker decides on the next call:

| A call, or the start of a worker, ends with | The worker | Further calls |
|---|---|---|
| a value, or an error of no other line | serves on | go to it |
| TokenBusyError | serves on | go to it |
| TokenBusyError as a pause ago, of a function that did not go through since | is retired | go to a new one |
| TokenUnreachableError, LoginLostError, or the end of its process | is retired | go to a new one |
| PinRefusedError, or any LoginError of a start | is retired | end with it: nobody logs in with this PIN again |
| another error of a start | is none | end with it for a pause, and go to a new one then |

A retired worker gets no further calls, and ends with the last of those that are under way. The first replacement is
made at once, each further one a pause after the one before. A new worker is a new login, so the token sees one login in
a pause, and none after a PIN that it refused: it locks itself after a few. A `Login` is shared by those with one PIN.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Concatenate, Generic, Self, TypeVar

from hsmkm.errors import HsmkmError, LoginError, TokenBusyError, TokenUnreachableError
from hsmkm.token.ckr import LOST, PinRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType

    from hsmkm.token.workers import Worker

T = TypeVar("T")
R = TypeVar("R")

PAUSE_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Login:
    """What is known of a PIN: workers that log in with it start one after the other, and none once it was refused."""

    refusal: LoginError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True, eq=False)
class _Term(Generic[T]):
    """A worker, the calls in it, since when each function is busy in it, and whether it gets no further calls."""

    worker: Worker[T]
    calls: int = 0
    busy_since: dict[object, float] = field(default_factory=dict)
    retired: bool = False


class StandingWorker(Generic[T]):
    """Calls and streams as `Worker` does, through the worker that `start` made last; the first is started at once."""

    def __init__(
        self, start: Callable[[], Worker[T]], pause: float = PAUSE_SECONDS, login: Login | None = None
    ) -> None:
        self._start = start
        self._pause = pause
        self._login = login or Login()
        self._lock = threading.Lock()
        self._failure: HsmkmError = _ended()
        self._tried_at = -math.inf
        self._closed = False
        self._retired: list[_Term[T]] = []
        self._term = self._begin()

    def call(self, function: Callable[Concatenate[T, ...], R], *args: object, deadline: float | None = None) -> R:
        """Run `function(context, *args)`; raises as `Worker.call`, or what starting a new worker raised."""
        with self._calling(function) as worker:
            return worker.call(function, *args, deadline=deadline)

    def stream(
        self, function: Callable[Concatenate[T, ...], Generator[R, None, None]], *args: object
    ) -> Generator[R, None, None]:
        """Yield what a generator function yields, as `Worker.stream`, and raise as `call`; all in one worker."""
        with self._calling(function) as worker:
            yield from worker.stream(function, *args)

    @contextmanager
    def _calling(self, function: object) -> Iterator[Worker[T]]:
        """Have a worker for one call, which is judged by its end; the last to leave a retired worker ends it."""
        with self._lock:
            term = self._present()
            term.calls += 1
        try:
            yield term.worker
            term.busy_since.pop(function, None)
        except HsmkmError as error:
            if self._is_broken(term, function, error):
                self._retire(term, error)
            raise
        finally:
            with self._lock:
                term.calls -= 1
                self._end_if_left(term)

    def _is_broken(self, term: _Term[T], function: object, error: HsmkmError) -> bool:
        """Tell whether an error of a call says that its worker is of no use any more."""
        if isinstance(error, TokenBusyError):
            now = time.monotonic()
            return now - term.busy_since.setdefault(function, now) >= self._pause
        return isinstance(error, (*LOST, PinRefusedError))

    def _retire(self, term: _Term[T], error: HsmkmError) -> None:
        with self._lock:
            if isinstance(error, PinRefusedError):
                self._login.refusal = error
            if term.retired:
                return
            self._failure = error
            self._set_aside(term)

    def _set_aside(self, term: _Term[T]) -> None:
        term.retired = True
        self._retired.append(term)
        self._end_if_left(term)

    def _end_if_left(self, term: _Term[T]) -> None:
        if term in self._retired and not term.calls:
            self._retired.remove(term)
            term.worker.end()

    def _present(self) -> _Term[T]:
        """Give the worker that takes calls, or start one, unless it is too early or must not be tried."""
        if self._closed:
            raise TokenUnreachableError("the token's worker was closed")
        if not self._term.retired:
            if self._term.worker.alive:
                return self._term
            self._failure = _ended()
            self._set_aside(self._term)
        if self._login.refusal is None and time.monotonic() < self._tried_at + self._pause:
            raise self._failure.with_traceback(None)
        try:
            self._term = self._begin()
        except HsmkmError as error:
            self._failure = error
            raise
        finally:
            self._tried_at = time.monotonic()
        return self._term

    def _begin(self) -> _Term[T]:
        with self._login.lock:
            if self._login.refusal is not None:
                raise self._login.refusal.with_traceback(None)
            try:
                return _Term(self._start())
            except LoginError as error:
                self._login.refusal = error
                raise

    def abandon(self) -> None:
        """End the worker in the midst of a call, from any thread; no other is started."""
        with self._lock:
            self._closed = True
            for term in (self._term, *self._retired):
                term.worker.abandon()

    def close(self) -> None:
        """Let the worker leave its context and end, if it still runs; no other is started."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.abandon()
        with self._lock:
            self._closed = True
            term, retired = self._term, tuple(self._retired)
        for each in retired:
            each.worker.end()
        if not term.retired and term.worker.alive:
            term.worker.__exit__(kind, error, traceback)
        else:
            term.worker.end()


def _ended() -> TokenUnreachableError:
    return TokenUnreachableError("the token's worker ended", hint="try again; see its standard error")
