"""Local workers of a campaign that are lost: who is replaced, who goes on, and when all end."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from hsmkm.campaign import lanes
from hsmkm.campaign.lanes import Failed, Lanes
from hsmkm.campaign.plan import Finish
from hsmkm.errors import LoginError, TokenUnreachableError
from hsmkm.token.workers import Worker
from tests.campaign import lane_work


class Starts:
    """Starts workers, counts them, and fails from the n-th on."""

    def __init__(self, threads: int = 1, fails_from: int | None = None, failure: Exception | None = None) -> None:
        self.threads = threads
        self.fails_from = fails_from
        self.failure = failure or LoginError("the PIN is wrong")
        self.count = 0

    def __call__(self) -> Worker[Any]:
        self.count += 1
        if self.fails_from is not None and self.count >= self.fails_from:
            raise self.failure
        return Worker(lane_work.opened, threads=self.threads)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "PATIENCE", 0.05)


def test_a_worker_that_dies_under_all_of_its_lanes_is_replaced_once_and_all_go_on(tmp_path: Path) -> None:
    starts = Starts(threads=4)
    with Lanes(starts, (1, 4), lane_work.die_together, tmp_path, 4) as running:
        told = list(running.events())
    assert sum(isinstance(event, Failed) for event in told) == 4
    assert sum(isinstance(event, Finish) for event in told) == 4
    assert starts.count == 2
    assert running.failure is None


def test_workers_that_are_lost_one_after_the_other_end_the_work_with_the_reason() -> None:
    with Lanes(Starts(), (1, 1), lane_work.die) as running:
        told = list(running.events())
    assert len(told) == lanes.MOST_LOSSES
    assert isinstance(running.failure, TokenUnreachableError)


@pytest.mark.parametrize("lasting", [False, True])
def test_a_login_that_was_lost_costs_a_worker_and_not_the_work(tmp_path: Path, *, lasting: bool) -> None:
    starts = Starts()
    with Lanes(starts, (1, 1), lane_work.lose_login_once, tmp_path, lasting=lasting) as running:
        events = running.events()
        assert isinstance(next(events), Failed)
        assert next(events) == Finish()
    assert starts.count == 2
    assert running.failure is None


def test_a_pin_that_is_refused_at_a_replacement_is_tried_once_for_all_and_ends_lasting_lanes_too() -> None:
    starts = Starts(fails_from=3)
    with Lanes(starts, (2, 1), lane_work.die, lasting=True) as running:
        list(running.events())
    assert starts.count == 3
    assert isinstance(running.failure, LoginError)


def test_a_system_that_gives_no_process_is_told_and_ends_no_lane_unnoticed(tmp_path: Path) -> None:
    starts = Starts(fails_from=2, failure=OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    with Lanes(starts, (1, 1), lane_work.lose_login_once, tmp_path) as running:
        *_, last = running.events()
    assert isinstance(last, Failed)
    assert "the system gives no worker: Cannot allocate memory" in last.error.message
    assert running.failure is last.error
