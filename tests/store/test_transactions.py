"""Transaction-ids rise for each recipient, over restarts, clocks that go back, and databases that do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store import check, transactions
from hsmkm.store.store import Store
from tests.database import alter

if TYPE_CHECKING:
    from tests.store.conftest import SoftwareAuthenticator

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
MICROSECONDS = int(NOW.timestamp()) * 1_000_000
METER, OTHER = b"UTI\x00\x00\x00\x00\x01", b"UTI\x00\x00\x00\x00\x02"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def numbered(url: str, authenticator: SoftwareAuthenticator, clock: Clock) -> Iterator[Store]:
    Store.create(url)
    with Store.open(url, authenticator, "tester", clock) as opened:
        yield opened


def reserve(store: Store, recipient: bytes = METER, count: int = 2) -> range:
    with store.count() as tx:
        return transactions.reserve(tx, recipient, count)


def test_numbers_begin_at_the_clock_and_rise_for_each_recipient(numbered: Store, clock: Clock) -> None:
    assert reserve(numbered) == range(MICROSECONDS, MICROSECONDS + 2)
    assert reserve(numbered) == range(MICROSECONDS + 2, MICROSECONDS + 4)
    assert reserve(numbered, OTHER, 1) == range(MICROSECONDS, MICROSECONDS + 1)
    clock.now += timedelta(seconds=1)
    assert reserve(numbered) == range(MICROSECONDS + 1_000_000, MICROSECONDS + 1_000_002)


def test_a_clock_that_goes_back_gives_no_number_twice(numbered: Store, clock: Clock) -> None:
    last = reserve(numbered)
    clock.now -= timedelta(days=3650)
    assert reserve(numbered) == range(last.stop, last.stop + 2)


def test_an_altered_row_gives_no_number_and_is_named(
    numbered: Store, url: str, authenticator: SoftwareAuthenticator
) -> None:
    reserve(numbered)
    numbered.close()
    alter(url, "UPDATE transactions SET next = 1")
    with Store.open(url, authenticator, "tester") as again:
        with pytest.raises(IntegrityError, match="does not fit its mac"):
            reserve(again)
        with again.read() as tx:
            assert [problem.table for problem in check.check(tx)] == ["transactions"]


def test_the_last_number_is_not_passed(numbered: Store) -> None:
    with pytest.raises(RefusedError, match="used up"):
        reserve(numbered, count=transactions.LAST)
    with pytest.raises(ValueError, match="8 octets"):
        reserve(numbered, b"short")
