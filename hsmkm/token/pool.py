"""Several workers for one work: batches go to whichever thread of whichever worker is free, and come back in order.

    shape = Shape.of(settings.workers, profile)
    with WorkerPool(starter, shape) as pool:
        for answer in pool.map(make, batches):
            ...

A batch is one call of a worker. What comes back is held only until it is read: so many batches are under way as there
are threads, and as many again wait, however many there are in all.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import LifoQueue
from typing import TYPE_CHECKING, Concatenate, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future
    from types import TracebackType

    from hsmkm.token.profile import Profile
    from hsmkm.token.workers import Worker
    from hsmkm.worker_settings import WorkerSettings

T = TypeVar("T")
R = TypeVar("R")

LOCAL_BATCH, DISTANT_BATCH = 500, 16
"""Meters in a batch: of a token on this machine, and of one that several threads of a process wait for."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many worker processes there are, threads in each, and meters in a batch."""

    processes: int
    threads: int
    batch: int

    @classmethod
    def of(cls, wanted: WorkerSettings, profile: Profile) -> Self:
        """Fill in what the settings leave to the token's profile and the machine."""
        threads = wanted.threads or profile.threads
        processes = wanted.processes or (1 if threads > 1 else os.cpu_count() or 1)
        return cls(processes, threads, wanted.batch or (LOCAL_BATCH if threads == 1 else DISTANT_BATCH))


class WorkerPool(Generic[T]):
    """Workers that are started together, and end together."""

    def __init__(self, start: Callable[[], Worker[T]], shape: Shape) -> None:
        self.shape = shape
        self._stack = ExitStack()
        self._places: LifoQueue[Worker[T]] = LifoQueue()
        with self._stack:
            workers = [self._stack.enter_context(start())]  # alone: a wrong PIN must not be tried by all at once
            with ThreadPoolExecutor(shape.processes) as starters:
                others = [starters.submit(start) for _ in range(shape.processes - 1)]
            failures = [error for each in others if (error := each.exception()) is not None]
            workers += [self._stack.enter_context(each.result()) for each in others if each.exception() is None]
            if failures:
                raise failures[0]
            self._callers = self._stack.enter_context(ThreadPoolExecutor(shape.processes * shape.threads))
            self._stack = self._stack.pop_all()
        for worker in workers * shape.threads:
            self._places.put(worker)

    def map(
        self,
        function: Callable[Concatenate[T, ...], R],
        batches: Iterable[tuple[object, ...]],
        deadline: float | None = None,
    ) -> Generator[R, None, None]:
        """Run `function(context, *batch)` for each batch and yield what it returns, in the order of the batches.

        Raises as `Worker.call`; what is under way then is waited for, and what is not begun is not done.
        """
        waiting: deque[Future[R]] = deque()
        try:
            for batch in batches:
                waiting.append(self._callers.submit(self._call, function, batch, deadline))
                if len(waiting) >= 2 * self.shape.processes * self.shape.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            under_way = [each for each in waiting if not each.cancel()]
            for each in under_way:
                each.exception()

    def _call(self, function: Callable[Concatenate[T, ...], R], batch: tuple[object, ...], deadline: float | None) -> R:
        worker = self._places.get()
        try:
            return worker.call(function, *batch, deadline=deadline)
        finally:
            self._places.put(worker)

    def close(self) -> None:
        """Let every worker leave its context and end."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
