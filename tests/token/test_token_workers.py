from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import RefusedError, TokenUnreachableError
from hsmkm.token.workers import Worker, WorkerError

if TYPE_CHECKING:
    from types import ModuleType

    from hsmkm.token.types import TokenSettings


@pytest.fixture
def profile_name() -> str:
    return "softhsm2"


def test_a_worker_enters_its_context_once_and_serves_calls_in_another_process(work: ModuleType) -> None:
    with Worker(work.nothing) as worker:
        assert worker.call(work.echo, 1) == ("context", 1)
        assert worker.call(work.process) == worker.call(work.process) != os.getpid()
        assert worker.call(work.collects_garbage)
    assert not worker.alive


def test_the_owner_gets_macs_without_loading_the_module(work: ModuleType, token_settings: TokenSettings) -> None:
    with Worker(work.open_vault, token_settings) as worker:
        assert worker.call(work.mac, b"data") == worker.call(work.mac, b"data")


def test_an_error_of_ours_travels_with_its_reasons_and_hint(work: ModuleType) -> None:
    with Worker(work.nothing) as worker:
        with pytest.raises(RefusedError) as caught:
            worker.call(work.refuse)
        assert (caught.value.reasons, caught.value.hint) == (("one", "two"), "ask again")
        assert worker.call(work.echo, 2) == ("context", 2)


def test_an_unexpected_error_names_its_type_and_place_and_no_value(work: ModuleType) -> None:
    with Worker(work.nothing) as worker, pytest.raises(WorkerError) as caught:
        worker.call(work.stumble, "00112233")
    assert "KeyError" in caught.value.message
    assert "token_work.py:" in caught.value.message
    assert "00112233" not in repr(caught.value)


@pytest.mark.parametrize("kind", [ConnectionResetError, BrokenPipeError, EOFError])
def test_a_connection_that_a_call_loses_is_not_taken_for_the_owners(work: ModuleType, kind: type[Exception]) -> None:
    with Worker(work.nothing, threads=2) as worker:
        for _ in range(3):
            with pytest.raises(WorkerError, match=r"token_work\.py"):
                worker.call(work.lose_connection, kind, deadline=30)
        assert worker.call(work.echo, 3) == ("context", 3)


def test_a_connection_that_the_opener_loses_is_told(work: ModuleType) -> None:
    with pytest.raises(WorkerError, match="Connection reset by peer"):
        Worker(work.never_connected)


class Unreadable:
    """An argument that cannot be made again in the worker."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("no number",)


def test_an_argument_that_cannot_be_read_is_told_and_the_worker_serves_on(work: ModuleType) -> None:
    with Worker(work.nothing) as worker:
        with pytest.raises(WorkerError, match="ValueError"):
            worker.call(work.echo, Unreadable())
        assert worker.call(work.echo, 4) == ("context", 4)


def test_an_error_of_the_opener_is_raised_at_the_start(work: ModuleType, token_settings: TokenSettings) -> None:
    (token_settings.home / "token" / "pin").chmod(0o644)
    with pytest.raises(Exception, match="others may read the PIN file"):
        Worker(work.open_vault, token_settings)


def test_a_missed_deadline_ends_the_worker(work: ModuleType) -> None:
    worker = Worker(work.nothing)
    started = time.monotonic()
    with pytest.raises(TokenUnreachableError, match="did not answer"):
        worker.call(work.sleep, 60.0, deadline=0.2)
    assert time.monotonic() - started < 30
    assert not worker.alive
    with pytest.raises(TokenUnreachableError, match="ended"):
        worker.call(work.echo, 1)


def test_a_dead_worker_is_an_unreachable_token(work: ModuleType) -> None:
    worker = Worker(work.nothing)
    with pytest.raises(TokenUnreachableError, match="ended"):
        worker.call(work.die)
    worker.close()


def test_a_stream_yields_what_the_worker_yields_and_may_be_left_early(work: ModuleType) -> None:
    with Worker(work.nothing) as worker:
        assert list(worker.stream(work.count, 1000)) == list(range(1000))
        stream = worker.stream(work.count, 10**9)
        assert [next(stream), next(stream)] == [0, 1]
        with pytest.raises(RuntimeError, match="stream"):
            worker.call(work.echo, 1)
        stream.close()
        assert worker.call(work.echo, 1) == ("context", 1)
        ended = worker.stream(work.count, 1)
        assert next(ended) == 0
        ended.close()
        assert worker.call(work.echo, 2) == ("context", 2)


def test_an_error_in_a_stream_arrives_after_its_items(work: ModuleType) -> None:
    with Worker(work.nothing) as worker:
        stream = worker.stream(work.count_and_refuse, 3)
        assert [next(stream), next(stream), next(stream)] == [0, 1, 2]
        with pytest.raises(RefusedError, match="enough"):
            next(stream)
        assert worker.call(work.echo, 3) == ("context", 3)


def test_a_program_given_on_the_command_line_can_start_a_worker() -> None:
    program = (
        "import token_work as work; from hsmkm.token.workers import Worker\n"
        "with Worker(work.nothing) as worker: print(worker.call(work.echo, 5))"
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "('context', 5)\n"


def test_a_worker_of_three_threads_runs_three_calls_at_once_and_no_more(work: ModuleType) -> None:
    with Worker(work.nothing, threads=3) as worker, ThreadPoolExecutor(6) as pool:
        places = [pool.submit(worker.call, work.meet, 30.0) for _ in range(6)]
        assert sorted(place.result() for place in places) == [0, 0, 1, 1, 2, 2]
        assert len({pool.submit(worker.call, work.process).result() for _ in range(6)}) == 1
    assert not worker.alive


def test_the_threads_of_a_worker_share_one_login(work: ModuleType, token_settings: TokenSettings) -> None:
    texts = [[b"%d/%d" % (thread, number) for number in range(30)] for thread in range(8)]
    with Worker(work.open_vault, token_settings, threads=4) as worker, ThreadPoolExecutor(8) as pool:
        made = [pool.submit(worker.call, work.macs_of, each) for each in texts]
        assert [each.result() for each in made] == [worker.call(work.macs_of, each) for each in texts]


def test_a_worker_that_dies_fails_every_call_that_is_under_way(work: ModuleType) -> None:
    worker = Worker(work.nothing, threads=3)
    with ThreadPoolExecutor(3) as pool:
        under_way = [pool.submit(worker.call, work.sleep, 60.0) for _ in range(2)]
        with pytest.raises(TokenUnreachableError, match="ended with 9"):
            worker.call(work.die)
        for each in under_way:
            with pytest.raises(TokenUnreachableError, match="ended with 9"):
                each.result()
    assert not worker.alive
    worker.end()


def test_a_stream_leaves_the_other_threads_of_a_worker_free(work: ModuleType) -> None:
    with Worker(work.nothing, threads=2) as worker:
        numbers = worker.stream(work.count, 3)
        assert next(numbers) == 0
        assert worker.call(work.echo, 1) == ("context", 1)
        assert list(numbers) == [1, 2]


def test_a_context_that_wears_is_made_fit_again_while_no_call_is_under_way(work: ModuleType) -> None:
    with Worker(work.wearing, threads=3) as worker, ThreadPoolExecutor(6) as pool:
        told = [each.result() for each in [pool.submit(worker.call, work.wear) for _ in range(40)]]
    assert max(recycled for recycled, _ in told) >= 5
    assert not any(disturbed for _, disturbed in told)
