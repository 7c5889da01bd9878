from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import LoginError, RefusedError, TokenUnreachableError
from hsmkm.token.standing import StandingWorker
from hsmkm.token.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


class Starts:
    """Starts workers, counts them, and fails as it is told."""

    def __init__(self, opener: Callable[[], object]) -> None:
        self.opener = opener
        self.count = 0
        self.failure: Exception | None = None

    def __call__(self) -> Worker[str]:
        self.count += 1
        if self.failure is not None:
            raise self.failure
        return Worker(self.opener)  # type: ignore[arg-type] # a function of a module that is imported by name


def test_a_worker_that_was_killed_is_replaced_before_the_next_call(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    with StandingWorker(starts) as worker:
        first = worker.call(work.process)
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert worker.call(work.process) != first
        assert starts.count == 2


def test_a_call_that_its_worker_did_not_survive_fails_and_is_not_repeated(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    with StandingWorker(starts) as worker:
        with pytest.raises(TokenUnreachableError):
            worker.call(work.die)
        assert starts.count == 1
        assert worker.call(work.echo, 1) == ("context", 1)
        assert starts.count == 2


def test_a_worker_whose_token_is_gone_is_replaced_and_a_refusal_is_not_the_worker_s_fault(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    with StandingWorker(starts) as worker:
        first = worker.call(work.process)
        with pytest.raises(RefusedError):
            worker.call(work.refuse)
        assert worker.call(work.process) == first
        with pytest.raises(TokenUnreachableError, match="removed"):
            worker.call(work.lose_token)
        assert worker.call(work.process) != first


def test_a_start_that_failed_is_tried_again_after_a_pause_only(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    with StandingWorker(starts, pause=3600.0) as worker:
        starts.failure = TokenUnreachableError("no token")
        for expected in ("ended", "no token", "no token"):
            with pytest.raises(TokenUnreachableError, match=expected):
                worker.call(work.die)
        assert starts.count == 2
        worker._pause = 0.0
        starts.failure = None
        assert worker.call(work.echo, 1) == ("context", 1)


def test_a_pin_that_was_refused_is_not_tried_again(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    with StandingWorker(starts, pause=0.0) as worker:
        with pytest.raises(TokenUnreachableError):
            worker.call(work.die)
        starts.failure = LoginError("the PIN is wrong")
        for _ in range(3):
            with pytest.raises(LoginError):
                worker.call(work.echo, 1)
        assert starts.count == 2


def test_nothing_is_started_after_the_end(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    worker = StandingWorker(starts)
    worker.close()
    with pytest.raises(TokenUnreachableError, match="closed"):
        worker.call(work.echo, 1)
    assert starts.count == 1


def test_a_worker_that_is_dead_at_the_end_is_no_error(work: ModuleType) -> None:
    with StandingWorker(Starts(work.nothing)) as worker:
        number = worker.call(work.process)
        os.kill(number, signal.SIGKILL)
        os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)


def test_a_failure_at_the_first_start_is_raised_at_once() -> None:
    starts = Starts(dict)
    starts.failure = LoginError("the PIN is wrong")
    with pytest.raises(LoginError):
        StandingWorker(starts)


def test_a_worker_is_abandoned_in_the_midst_of_a_call_and_none_follows_it(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    with StandingWorker(starts) as worker:
        threading.Timer(0.2, worker.abandon).start()
        with pytest.raises(TokenUnreachableError):
            worker.call(work.sleep, 60)
        with pytest.raises(TokenUnreachableError):
            worker.call(work.process)
    assert starts.count == 1
