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
from hsmkm.errors import HsmkmError, LoginError
from hsmkm.token.ckr import LOST
from hsmkm.token.standing import Login, StandingWorker

if TYPE_CHECKING:
    from hsmkm.steps.party import Party
    from hsmkm.token.workers import Worker

MOST_LOSSES = 3
"""Workers that a lane loses one after the other, with no meter between them, before a campaign's owner gives up."""
LISTEN_SECONDS = 0.2
PATIENCE = POLL.total_seconds()


@dataclass(frozen=True, slots=True)
class Failed:
    """A lane met an error that is not one meter's alone."""

    error: HsmkmError


Told = Event | Failed


class Lanes:
    """Workers and their lanes.

    `work` is a function of a worker that works off a slice, and what it is given beside its party. `lasting` lanes go
    on for ever, through errors too; the others end with their campaign. `failure` is the error that ended all lanes.
    """

    def __init__(
        self,
        start: Callable[[], Worker[Party]],
        shape: tuple[int, int],
        work: Callable[..., Generator[Event, None, None]],
        *args: object,
        lasting: bool = False,
    ) -> None:
        self.failure: HsmkmError | None = None
        self._work, self._args = work, args
        self._lasting = lasting
        processes, threads = shape
        self._news = threading.Condition()
        self._stopping = False
        self._slices = 0
        self._told: queue.Queue[Told] = queue.Queue()
        login = Login()
        with ExitStack() as stack:
            self._workers = [stack.enter_context(StandingWorker(start, login=login)) for _ in range(processes)]
            self._stack = stack.pop_all()
        each = [worker for worker in self._workers for _ in range(threads)]
        self._lanes = [threading.Thread(target=self._lane, args=(worker,)) for worker in each]
        for lane in self._lanes:
            lane.start()

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
        for worker in self._workers:
            worker.abandon()

    def _lane(self, worker: StandingWorker[Party]) -> None:
        failures = 0
        while not self._stopping:
            last, worked = self._slice(worker)
            if isinstance(last, Wait):
                self._wait((last.until - datetime.now(UTC)).total_seconds())
            elif isinstance(last, Failed):
                failures = 1 if worked else failures + 1
                if not self._goes_on(last.error, failures):
                    return
            elif isinstance(last, Finish | Rest | Stop) and not self._lasting:
                return

    def _wait(self, seconds: float) -> None:
        """Wait for so long, a few seconds at most, or until another lane has ended a slice, or all are to stop."""
        with self._news:
            seen = self._slices
            self._news.wait_for(lambda: self._stopping or self._slices != seen, min(max(seconds, 0), PATIENCE))

    def _slice(self, worker: StandingWorker[Party]) -> tuple[Told | None, bool]:
        """Work off a slice; give what was told last, and whether an attempt on a meter ended in it."""
        last: Told | None = None
        worked = False
        try:
            with closing(worker.stream(self._work, *self._args)) as events:
                for event in events:
                    last = event
                    worked = worked or isinstance(event, Worked)
                    self._told.put(event)
                    if self._stopping:
                        break
        except (HsmkmError, OSError) as error:
            last = Failed(error if isinstance(error, HsmkmError) else _no_worker(error))
            self._told.put(last)
        if isinstance(last, Worked):
            with self._news:
                self._slices += 1
                self._news.notify_all()
        return last, worked

    def _goes_on(self, error: HsmkmError, failures: int) -> bool:
        """Tell whether a lane goes on after a while: a lasting one does, others where only their worker was lost.

        Nobody does after a login that failed: a token locks itself after a few wrong PINs.
        """
        lost = isinstance(error, LOST)
        if (isinstance(error, LoginError) and not lost) or not (self._lasting or (lost and failures < MOST_LOSSES)):
            self.failure = self.failure or error
            self.stop()
            return False
        with self._news:
            self._news.wait_for(lambda: self._stopping, PATIENCE)
        return True

    def close(self) -> None:
        """Wait for the lanes, and let the workers end."""
        self.stop()
        for lane in self._lanes:
            lane.join()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.abandon()
        self.close()


def _no_worker(error: OSError) -> HsmkmError:
    return HsmkmError(
        f"the system gives no worker: {error.strerror or type(error).__name__}",
        hint="see whether it has memory, files and processes left",
    )
