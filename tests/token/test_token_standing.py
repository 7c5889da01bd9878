from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import LoginError, RefusedError, TokenBusyError, TokenUnreachableError
from hsmkm.token.ckr import LoginLostError, PinRefusedError
from hsmkm.token.standing import Login, StandingWorker
from hsmkm.token.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType


class Starts:
    """Starts workers, counts them, and fails as it is told."""

    def __init__(self, opener: Callable[[], object], threads: int = 1) -> None:
        self.opener = opener
        self.threads = threads
        self.count = 0
        self.failure: Exception | None = None

    def __call__(self) -> Worker[str]:
        self.count += 1
        if self.failure is not None:
            raise self.failure
        return Worker(self.opener, threads=self.threads)  # type: ignore[arg-type] # a function of a module that is imported by name


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


def test_a_token_that_is_busy_once_keeps_its_worker_and_one_that_stays_busy_gets_another(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    with StandingWorker(starts, pause=3600.0) as worker:
        first = worker.call(work.process)
        for busy in (True, False, True):
            with pytest.raises(TokenBusyError) if busy else nullcontext():
                worker.call(work.be_busy, busy)
        worker._pause = 0.0
        worker.call(work.be_busy, False)
        assert worker.call(work.process) == first
        with pytest.raises(TokenBusyError):
            worker.call(work.be_busy, True)
        assert worker.call(work.process) != first
    assert starts.count == 2


def test_other_calls_that_go_through_do_not_hide_that_one_is_always_busy(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    with StandingWorker(starts, pause=3600.0) as worker:
        with pytest.raises(TokenBusyError):
            worker.call(work.be_busy, True)
        first = worker.call(work.process)
        worker._pause = 0.0
        with pytest.raises(TokenBusyError):
            worker.call(work.be_busy, True)
        assert worker.call(work.process) != first


def test_a_session_that_lost_its_login_costs_one_login_in_a_pause(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    with StandingWorker(starts, pause=3600.0) as worker:
        for _ in range(4):
            with pytest.raises(LoginLostError):
                worker.call(work.hear_that_pin_is_locked)
        assert starts.count == 2
        worker._pause = 0.0
        assert worker.call(work.echo, 1) == ("context", 1)


def test_a_worker_that_lost_its_login_and_whose_pin_is_refused_then_is_the_last(work: ModuleType) -> None:
    starts = Starts(work.nothing)
    with StandingWorker(starts, pause=0.0) as worker:
        with pytest.raises(LoginLostError):
            worker.call(work.hear_that_pin_is_locked)
        starts.failure = PinRefusedError("locked")
        for _ in range(3):
            with pytest.raises(PinRefusedError):
                worker.call(work.process)
    assert starts.count == 2


def test_a_pin_that_was_refused_in_a_call_is_not_tried_by_any_worker_of_this_login(work: ModuleType) -> None:
    starts, login = Starts(work.nothing), Login()
    with StandingWorker(starts, 0.0, login) as one, StandingWorker(starts, 0.0, login) as other:
        with pytest.raises(PinRefusedError):
            one.call(work.log_in_with_a_wrong_pin)
        with pytest.raises(PinRefusedError):
            one.call(work.process)
        assert other.call(work.echo, 1) == ("context", 1)
        with pytest.raises(TokenUnreachableError):
            other.call(work.die)
        with pytest.raises(PinRefusedError):
            other.call(work.process)
    assert starts.count == 2


def test_calls_under_way_in_a_worker_that_is_replaced_go_on_to_their_end(work: ModuleType, tmp_path: Path) -> None:
    starts, go_on = Starts(work.nothing, threads=3), tmp_path / "go-on"
    with StandingWorker(starts) as worker, ThreadPoolExecutor(2) as others:
        first = worker.call(work.process)
        going_on = [others.submit(worker.call, work.meet_and_wait_for, 30.0, go_on) for _ in range(2)]
        with pytest.raises(TokenUnreachableError, match="removed"):
            worker.call(work.meet_and_lose_token, 30.0)
        second = worker.call(work.process)
        assert second != first
        assert not any(each.done() for each in going_on)
        go_on.touch()
        assert [each.result() for each in going_on] == [first, first]
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        assert worker.call(work.process) == second
