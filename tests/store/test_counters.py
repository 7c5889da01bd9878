from __future__ import annotations

import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store import counters, leases
from hsmkm.store.counters import LAST, Counter
from hsmkm.store.leases import Lease
from hsmkm.store.store import Store, Transaction
from hsmkm.token.types import Mac

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KEY = bytes(range(16))
CLIENT = b"HEA\x00\x00\x00\x00\x01"
METER = b"UTI\x00\x00\x00\x00\x01"


@pytest.fixture
def tx(store: Store) -> Iterator[Transaction]:
    with store.begin("counter", "x", {}) as opened:
        yield opened


def test_values_begin_at_one_and_rise(tx: Transaction) -> None:
    assert counters.reserve(tx, KEY, CLIENT, 2, None) == range(1, 3)
    assert counters.reserve(tx, KEY, CLIENT, 3, None) == range(3, 6)
    assert counters.reserve(tx, bytes(16), CLIENT, 1, None, begin_at=100) == range(100, 101)
    assert counters.reserve(tx, KEY, b"DC1\x00\x00\x00\x00\x01", 1, None) == range(1, 2)
    assert counters.current(tx, KEY, CLIENT) == Counter(6)


def test_a_reservation_survives_the_process_only_with_its_commit(store: Store) -> None:
    with suppress(PowerGoneError), store.begin("counter", "x", {}) as tx:
        counters.reserve(tx, KEY, CLIENT, 5, None)
        raise PowerGoneError
    with store.begin("counter", "x", {}) as tx:
        assert counters.reserve(tx, KEY, CLIENT, 1, None) == range(1, 2)


def test_an_authenticated_value_raises_the_counter_within_bounds(tx: Transaction) -> None:
    counters.reserve(tx, KEY, CLIENT, 1, None)
    counters.raise_to(tx, KEY, CLIENT, 50, 1000)
    counters.raise_to(tx, KEY, CLIENT, 10, 1000)
    assert counters.reserve(tx, KEY, CLIENT, 1, None) == range(51, 52)
    with pytest.raises(RefusedError, match="more than 1000 above 52"):
        counters.raise_to(tx, KEY, CLIENT, 1053, 1000)


def test_a_hint_moves_nothing_for_good(tx: Transaction) -> None:
    counters.reserve(tx, KEY, CLIENT, 10, None)
    assert counters.reserve_trial(tx, KEY, CLIENT, 500, 3, 1000) == range(501, 504)
    assert counters.reserve(tx, KEY, CLIENT, 1, None) == range(11, 12)
    assert counters.reserve_trial(tx, KEY, CLIENT, 500, 3, 1000) == range(504, 507)
    with pytest.raises(RefusedError):
        counters.reserve_trial(tx, KEY, CLIENT, 1013, 1, 1000)


def test_an_answer_under_the_key_makes_the_trial_the_counter(tx: Transaction) -> None:
    counters.reserve_trial(tx, KEY, CLIENT, 500, 3, 1000)
    counters.confirm_trial(tx, KEY, CLIENT, 503)
    assert counters.current(tx, KEY, CLIENT) == Counter(504)
    counters.confirm_trial(tx, KEY, CLIENT, 503)
    assert counters.reserve(tx, KEY, CLIENT, 1, None) == range(504, 505)


def test_an_answer_does_not_confirm_what_another_association_is_trying(tx: Transaction) -> None:
    counters.reserve_trial(tx, KEY, CLIENT, 100, 2, 1000)
    counters.reserve_trial(tx, KEY, CLIENT, 900, 2, 1000)
    counters.confirm_trial(tx, KEY, CLIENT, 101)
    standing = counters.current(tx, KEY, CLIENT)
    assert standing is not None
    assert (standing.next, standing.trial_next) == (102, 903)


def test_a_lost_lease_reserves_no_trial_either(tx: Transaction) -> None:
    lease = leases.acquire(tx, METER, "a", 1, NOW)
    leases.release(tx, lease)
    with pytest.raises(RefusedError, match="was lost"):
        counters.reserve_trial(tx, KEY, CLIENT, 5, 1, 1000, lease)


def test_order_steps_over_the_interval_of_trials(tx: Transaction) -> None:
    counters.reserve_trial(tx, KEY, CLIENT, 4, 5, 1000)
    assert counters.reserve(tx, KEY, CLIENT, 3, None) == range(1, 4)
    assert counters.reserve(tx, KEY, CLIENT, 3, None) == range(10, 13)
    assert counters.current(tx, KEY, CLIENT) == Counter(13)


def test_a_hint_below_the_interval_stretches_it(tx: Transaction) -> None:
    assert counters.reserve_trial(tx, KEY, CLIENT, 499, 1, 1000) == range(500, 501)
    assert counters.reserve_trial(tx, KEY, CLIENT, 99, 2, 1000) == range(100, 102)
    assert counters.current(tx, KEY, CLIENT) == Counter(1, 100, 501)
    assert counters.reserve_trial(tx, KEY, CLIENT, 98, 2, 1000) == range(501, 503)


def test_a_key_that_is_used_up_is_renewed(tx: Transaction) -> None:
    assert counters.reserve(tx, KEY, CLIENT, 1, None, begin_at=LAST) == range(LAST, LAST + 1)
    with pytest.raises(RefusedError, match="used up") as raised:
        counters.reserve(tx, KEY, CLIENT, 1, None)
    assert "renew" in raised.value.hint
    with pytest.raises(RefusedError, match="used up"):
        counters.reserve_trial(tx, KEY, CLIENT, LAST, 1, 1000)


def test_an_answer_is_accepted_once_and_in_order(tx: Transaction) -> None:
    counters.accept_received(tx, KEY, METER, 7)
    counters.accept_received(tx, KEY, METER, 9)
    assert counters.lowest_received(tx, KEY, METER) == 10
    for recorded in (9, 8, 0):
        with pytest.raises(IntegrityError, match="below 10"):
            counters.accept_received(tx, KEY, METER, recorded)
    for wrong in (-1, LAST + 1):
        with pytest.raises(IntegrityError):
            counters.accept_received(tx, KEY, METER, wrong)
    counters.accept_received(tx, KEY, METER, LAST)


def test_a_reservation_compares_the_fence(tx: Transaction) -> None:
    first = leases.acquire(tx, METER, "one", 60, NOW)
    assert counters.reserve(tx, KEY, CLIENT, 1, first) == range(1, 2)
    second = leases.acquire(tx, METER, "two", 60, NOW + timedelta(seconds=61))
    with pytest.raises(RefusedError, match="lost"):
        counters.reserve(tx, KEY, CLIENT, 1, first)
    assert counters.reserve(tx, KEY, CLIENT, 1, second) == range(2, 3)


def test_a_meter_has_one_holder_at_a_time(tx: Transaction) -> None:
    first = leases.acquire(tx, METER, "one", 60, NOW)
    assert first == Lease(METER, 1)
    with pytest.raises(RefusedError, match="held by one"):
        leases.acquire(tx, METER, "two", 60, NOW + timedelta(seconds=59))
    leases.renew(tx, first, 60, NOW + timedelta(seconds=59))
    with pytest.raises(RefusedError, match="held by one"):
        leases.acquire(tx, METER, "two", 60, NOW + timedelta(seconds=61))
    leases.release(tx, first)
    with pytest.raises(RefusedError, match="lost"):
        leases.renew(tx, first, 60, NOW)
    second = leases.acquire(tx, METER, "two", 60, NOW)
    assert second.fence == 2
    leases.release(tx, first)
    leases.check(tx, second)


class PowerGoneError(Exception):
    pass


class AllowAll:
    """Stands where speed matters and tampering does not."""

    integrity_key = 1

    def mac(self, data: bytes) -> Mac:
        return Mac(1, bytes(len(data[:32])))

    def still_there(self) -> None:
        pass

    def verify(self, data: bytes, mac: Mac) -> None:
        assert len(data) > len(mac.value)


class NoValueTwice(RuleBasedStateMachine):
    """Whatever the order of calls, crashes and lies: each value is handed out once, and order never goes back."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        url = f"sqlite:{Path(self.folder.name) / 'store.db'}"
        Store.create(url)
        self.store = Store.open(url, AllowAll(), "machine", lambda: NOW)
        self.given: list[int] = []

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(count=st.integers(1, 6), crash=st.booleans())
    def reserve(self, count: int, crash: bool) -> None:  # noqa: FBT001 - hypothesis names its arguments
        with suppress(PowerGoneError):
            with self.store.begin("reserve", "x", {}) as tx:
                block = counters.reserve(tx, KEY, CLIENT, count, None)
                if crash:
                    raise PowerGoneError
            self.given += block

    @rule(hint=st.integers(0, 60), count=st.integers(1, 6))
    def trial(self, hint: int, count: int) -> None:
        try:
            with self.store.begin("trial", "x", {}) as tx:
                block = counters.reserve_trial(tx, KEY, CLIENT, hint, count, 40)
        except RefusedError:
            return
        assert block.start > hint
        self.given += block

    @rule(back=st.integers(0, 5))
    def confirm(self, back: int) -> None:
        with self.store.begin("confirm", "x", {}) as tx:
            if self.given:
                counters.confirm_trial(tx, KEY, CLIENT, self.given[max(0, len(self.given) - 1 - back)])

    @rule(value=st.integers(0, 60))
    def believe(self, value: int) -> None:
        try:
            with self.store.begin("raise", "x", {}) as tx:
                counters.raise_to(tx, KEY, CLIENT, value, 20)
        except RefusedError:
            return

    @invariant()
    def no_value_twice(self) -> None:
        assert len(self.given) == len(set(self.given))


TestNoValueTwice = NoValueTwice.TestCase
TestNoValueTwice.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
