"""Ctrl-C on work with many meters: a test plays the user, between two items."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest

from hsmkm.cli.ending import Interruption


def numbers(interrupted_at: tuple[int, ...], closed: list[bool]) -> Generator[int, None, None]:
    try:
        for number in range(5):
            for _ in range(interrupted_at.count(number)):
                os.kill(os.getpid(), signal.SIGINT)
            yield number
    finally:
        closed.append(True)


def test_without_an_interruption_everything_is_taken() -> None:
    ending, closed = Interruption(), list[bool]()
    assert ending.gather(numbers((), closed)) == [0, 1, 2, 3, 4]
    ending.end()
    assert closed == [True]


def test_an_interruption_ends_after_the_item_that_is_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    ending, closed = Interruption(), list[bool]()
    before = signal.getsignal(signal.SIGINT)
    assert ending.gather(numbers((1,), closed)) == [0, 1]
    assert closed == [True]
    assert "interrupt again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        ending.end()


def test_a_second_interruption_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        Interruption().gather(numbers((1, 1), []))
