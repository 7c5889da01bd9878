"""Local workers that work off campaigns: processes of several threads, each thread a lane with a slice of its own.

The process that owns them never loads the PKCS#11 module. Asked to stop, every lane ends after the meter that it is at
and gives the rest of its slice back. A worker that died is replaced, and its slices are taken over by the next lane.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hsmkm.campaign.events import Event, Worked
from hsmkm.campaign.plan import POLL, Finish, Rest, Stop, Wait
from hsmkm.errors import HsmkmError, LoginError, TokenBusyError, TokenUnreachableError
from hsmkm.token.workers import Worker

if TYPE_CHECKING:
    from hsmkm.steps.party import Party

MOST_DEATHS = 3
"""Workers that die one after the other, with no meter between them, before a campaign's owner gives up."""
LISTEN_SECONDS = 0.2
PATIENCE = POLL.total_seconds()


@dataclass(frozen=True, slots=True)
class Failed:
    """A lane met an error that is not one meter's alone; a lasting lane tries again."""

    error: HsmkmError


Told = Event | Failed


class Lanes:
    """Workers and their lanes.

    `work` is a function of a worker that works off a slice, and what it is given beside its party. `lasting` lanes go
    on for ever, through errors too; the others end with their campaign.
    """

    def __init__(
        self,
        start: Callable[[], Worker[Party]],
        shape: tuple[int, int],
        work: Callable[..., Generator[Event, None, None]],
        *args: object,
        lasting: bool = False,
    ) -> None:
        self._work, self._args = work, args
        self._lasting = lasting
        processes, threads = shape
        self._news = threading.Condition()
        self._stopping = False
        self._slices = 0
        self._told: queue.Queue[Told] = queue.Queue()
        with ExitStack() as self._stack:
            self._places: list[_Place] = []
            for _ in range(processes):
                self._places.append(_Place(start))
                self._stack.callback(self._places[-1].close)
            self._stack.pop_all()
        lanes = [threading.Thread(target=self._lane, args=(place,)) for place in self._places for _ in range(threads)]
        for lane in lanes:
            lane.start()
        self._lanes = lanes

    def events(self) -> Iterator[Told]:
        """Yield what the lanes tell, until all of them have ended."""
        while True:
            alive = any(lane.is_alive() for lane in self._lanes)
            try:
                yield self._told.get(timeout=LISTEN_SECONDS if alive else 0)
            except queue.Empty:
                if not alive:
                    return

    def stop(self) -> None:
        """Let every lane end after the meter that it is at."""
        self._stopping = True
        with self._news:
            self._news.notify_all()

    def abandon(self) -> None:
        """End the workers at once; their meters are resolved by whoever goes on."""
        self.stop()
        for place in self._places:
            place.abandon()

    def _lane(self, place: _Place) -> None:
        while not self._stopping:
            last = self._slice(place)
            if isinstance(last, Wait):
                self._wait((last.until - datetime.now(UTC)).total_seconds())
            elif isinstance(last, Failed):
                if not self._goes_on(place, last):
                    return
            elif isinstance(last, Finish | Rest | Stop) and not self._lasting:
                return

    def _wait(self, seconds: float) -> None:
        """Wait for so long, a few seconds at most, or until another lane has ended a slice, or all are to stop."""
        with self._news:
            seen = self._slices
            self._news.wait_for(lambda: self._stopping or self._slices != seen, min(max(seconds, 0), PATIENCE))

    def _slice(self, place: _Place) -> Told | None:
        """Work off a slice, and give what was told last."""
        last: Told | None = None
        try:
            worker = place.present()
            with closing(worker.stream(self._work, *self._args)) as events:
                for event in events:
                    last = event
                    self._told.put(event)
                    if isinstance(event, Worked):
                        place.deaths = 0
                    if self._stopping:
                        break
        except HsmkmError as error:
            place.failed(error)
            last = Failed(error)
            self._told.put(last)
        if isinstance(last, Worked):
            with self._news:
                self._slices += 1
                self._news.notify_all()
        return last

    def _goes_on(self, place: _Place, failed: Failed) -> bool:
        """Tell whether a lane goes on after a while: a lasting one does, others where only their worker died.

        Nobody does after a login that failed: a token locks itself after a few wrong PINs.
        """
        died = isinstance(failed.error, TokenUnreachableError) and place.deaths < MOST_DEATHS
        if isinstance(failed.error, LoginError) or not (self._lasting or died):
            self.stop()
            return False
        self._wait(PATIENCE if self._lasting else 0.0)
        return True

    def close(self) -> None:
        """Wait for the lanes, and let the workers end."""
        self.stop()
        for lane in self._lanes:
            lane.join()
        for place in self._places:
            place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.abandon()
        self.close()


class _Place:
    """Where a worker is: the one that runs, or the next one after it died."""

    def __init__(self, start: Callable[[], Worker[Party]]) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._refused: LoginError | None = None
        self.deaths = 0
        self._worker = start()

    def present(self) -> Worker[Party]:
        """Give the worker, a fresh one where it died; raises what starting one raised, and never logs in again then."""
        with self._lock:
            if self._worker.alive:
                return self._worker
            if self._refused is not None:
                raise self._refused.with_traceback(None)
            try:
                self._worker = self._start()
            except LoginError as error:
                self._refused = error
                raise
            return self._worker

    def failed(self, error: HsmkmError) -> None:
        """Take note of a worker that died, and end one whose token is gone."""
        if not isinstance(error, TokenUnreachableError) or isinstance(error, TokenBusyError):
            return
        with self._lock:
            self.deaths += 1
            self._worker.abandon()

    def abandon(self) -> None:
        """End the worker in the midst of its calls."""
        self._worker.abandon()

    def close(self) -> None:
        """Let the worker leave its context and end, if it still runs."""
        if self._worker.alive:
            self._worker.close()
