"""Several processes logged in to one token at once: what one makes or ends, the others see."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import RefusedError, TokenUnreachableError
from hsmkm.token.workers import Worker

if TYPE_CHECKING:
    from types import ModuleType

    from hsmkm.token.types import TokenSettings

PAIRS = 8
STARTS = 6


def test_a_key_made_in_one_process_works_in_another_that_was_logged_in_before(
    work: ModuleType, token_settings: TokenSettings, profile_name: str
) -> None:
    with Worker(work.open_vault, token_settings) as maker, Worker(work.open_vault, token_settings) as other:
        assert maker.call(work.mac, b"text") == other.call(work.mac, b"text")
        maker.call(work.make_pair, "shared")
        assert other.call(work.has_pair, "shared")
        assert len(other.call(work.sign, "shared")) == 64
        maker.call(work.destroy_pair, "shared")
        assert not other.call(work.has_pair, "shared")
        if profile_name == "nss":  # a session copy did the work, and lives on until the process connects anew
            assert len(other.call(work.sign, "shared")) == 64
        else:
            with pytest.raises(TokenUnreachableError):
                other.call(work.sign, "shared")
        other.call(work.reconnect)
        with pytest.raises(RefusedError, match="the token has no key shared"):
            other.call(work.sign, "shared")


def test_two_processes_make_and_destroy_keys_at_once(work: ModuleType, token_settings: TokenSettings) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        workers = [stack.enter_context(Worker(work.open_vault, token_settings)) for _ in range(2)]
        made = [
            pool.submit(worker.call, work.make_and_destroy_pairs, f"of-{number}", PAIRS)
            for number, worker in enumerate(workers)
        ]
        assert [each.result() for each in made] == [PAIRS, PAIRS]
        assert workers[0].call(work.mac, b"text") == workers[1].call(work.mac, b"text")


def test_processes_start_at_once(work: ModuleType, token_settings: TokenSettings) -> None:
    def mac(_: int) -> object:
        with Worker(work.open_vault, token_settings) as worker:
            return worker.call(work.mac, b"text")

    with Worker(work.open_vault, token_settings) as first, ThreadPoolExecutor(STARTS) as pool:
        expected = first.call(work.mac, b"text")
        assert list(pool.map(mac, range(STARTS))) == [expected] * STARTS
