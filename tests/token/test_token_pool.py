from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import LoginError, RefusedError, TokenUnreachableError
from hsmkm.token.pool import Shape, WorkerPool
from hsmkm.token.profile import load_profile
from hsmkm.token.workers import Worker
from hsmkm.worker_settings import WorkerSettings

if TYPE_CHECKING:
    from types import ModuleType

    from hsmkm.token.types import TokenSettings


@pytest.fixture
def profile_name() -> str:
    return "softhsm2"


def test_batches_come_back_in_order_from_every_thread_of_every_process(work: ModuleType) -> None:
    with WorkerPool(lambda: Worker(work.nothing, threads=2), Shape(2, 2, 1)) as pool:
        assert [value for _, value in pool.map(work.echo, ((number,) for number in range(50)))] == list(range(50))
        processes = set(pool.map(work.process_slowly, [() for _ in range(20)]))
    assert len(processes) == 2


def test_only_as_many_batches_are_taken_up_as_there_is_room_for(work: ModuleType) -> None:
    taken: list[int] = []

    def batches() -> object:
        for number in range(100):
            taken.append(number)
            yield (number,)

    with WorkerPool(lambda: Worker(work.nothing), Shape(1, 1, 1)) as pool:
        answers = pool.map(work.echo, batches())  # type: ignore[arg-type]
        assert next(answers) == ("context", 0)
        assert len(taken) <= 3
        answers.close()
        assert len(taken) <= 3


def test_an_error_of_a_batch_ends_the_work_and_leaves_the_workers(work: ModuleType) -> None:
    with WorkerPool(lambda: Worker(work.nothing), Shape(2, 1, 1)) as pool:
        with pytest.raises(RefusedError, match="no"):
            list(pool.map(work.refuse, [() for _ in range(10)]))
        assert list(pool.map(work.echo, [(1,)])) == [("context", 1)]


def test_a_worker_that_dies_ends_the_work(work: ModuleType) -> None:
    with (
        pytest.raises(TokenUnreachableError, match="ended with 9"),
        WorkerPool(lambda: Worker(work.nothing), Shape(2, 1, 1)) as pool,
    ):
        list(pool.map(work.die, [() for _ in range(3)]))


def test_a_wrong_pin_is_tried_by_one_worker_alone(work: ModuleType, token_settings: TokenSettings) -> None:
    path = token_settings.home / "token" / "wrong"
    path.write_text("not the PIN")
    path.chmod(0o600)
    wrong = replace(token_settings, pin="file:token/wrong")
    started: list[int] = []

    def start() -> Worker[object]:
        started.append(1)
        return Worker(work.open_vault, wrong)

    with pytest.raises(LoginError):
        WorkerPool(start, Shape(3, 1, 1))
    assert len(started) == 1


def test_the_shape_follows_the_settings_then_the_profile() -> None:
    profile = load_profile("softhsm2")
    assert Shape.of(WorkerSettings(processes=3), profile) == Shape(3, 1, 500)
    assert Shape.of(WorkerSettings(threads=32), profile) == Shape(1, 32, 16)
    assert Shape.of(WorkerSettings(2, 16, 25), profile) == Shape(2, 16, 25)
    assert Shape.of(WorkerSettings(), profile).processes >= 1


def test_settings_out_of_bounds_are_named() -> None:
    assert [name for name, _ in WorkerSettings(-1, 1000, 10_001).faults()] == ["processes", "threads", "batch"]
