"""A store that lost its newest time goes on above everything that was given in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store import certificates, counters, key_sets, meters, packages, recovery, state
from hsmkm.store.anchor import FileAnchor
from hsmkm.store.check import check
from hsmkm.store.guard import Opening
from hsmkm.store.key_set import MAX_GENERATION_STEP
from hsmkm.store.packages import Direction, PackageRecord
from hsmkm.store.recovery import Loss
from hsmkm.store.store import Store
from tests.database import keep

if TYPE_CHECKING:
    from tests.store.conftest import Factory, SoftwareAuthenticator

KNOWN, UNKNOWN, CLIENT = bytes(16), bytes(15) + b"\1", b"UTI00004"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
JUMP = 1000


class Home:
    """A store with an anchor, of which copies are kept and put back."""

    def __init__(self, url: str, authenticator: SoftwareAuthenticator, folder: Path) -> None:
        self.url, self.authenticator, self.folder = url, authenticator, folder
        self.anchor = folder / "elsewhere" / "anchor"

    def open(self, opening: Opening = Opening.USE) -> Store:
        anchor = FileAnchor(self.anchor)
        return Store.open(self.url, self.authenticator, "tester", lambda: NOW, anchor=anchor, opening=opening)

    def keep(self) -> None:
        self.restore = keep(self.url, self.folder / "kept")

    def recover(self) -> tuple[Loss, int, list[bytes]]:
        with self.open(Opening.RECOVERY) as store:
            with store.read() as tx:
                found = state.fetch(tx)
            assert found is not None
            assert store.guard is not None
            lost = recovery.loss(found, store.guard.anchored(), JUMP)
            with store.begin("store-recover", "x", {}) as tx:
                raised, spent = recovery.recover(tx, lost)
        return lost, raised, spent

    def reserve(self, identity: bytes, count: int = 1) -> range:
        with self.open() as store, store.count() as tx:
            return counters.reserve(tx, identity, CLIENT, count, None)


@pytest.fixture
def home(url: str, authenticator: SoftwareAuthenticator, tmp_path: Path) -> Home:
    return Home(url, authenticator, tmp_path)


@pytest.mark.parametrize("kept_before", [True, False], ids=["a counter of before", "a counter that was lost whole"])
def test_every_later_value_of_a_counter_is_above_every_earlier_one(home: Home, *, kept_before: bool) -> None:
    home.reserve(KNOWN if kept_before else b"\7" * 16, 40)
    home.keep()
    given = [home.reserve(KNOWN, 16) for _ in range(5)]
    home.restore()
    with pytest.raises(IntegrityError, match="restored"):
        home.reserve(KNOWN)
    home.recover()
    assert home.reserve(KNOWN).start >= given[-1].stop


def test_twice_lost_is_twice_raised(home: Home) -> None:
    home.reserve(b"\7" * 16)
    used: list[int] = []
    for _ in range(2):
        home.keep()
        used += [value for _ in range(3) for value in home.reserve(UNKNOWN, 10)]
        home.restore()
        home.recover()
    used += home.reserve(UNKNOWN, 10)
    assert len(used) == len(set(used)) == 70
    assert used == sorted(used)


def test_trials_and_what_a_meter_told_count_as_used(home: Home) -> None:
    home.reserve(KNOWN)
    home.keep()
    with home.open() as store, store.count() as tx:
        tried = counters.reserve_trial(tx, KNOWN, CLIENT, 700, 8, JUMP)
    with home.open() as store, store.count() as tx:
        counters.raise_to(tx, UNKNOWN, CLIENT, 900, JUMP)
    home.restore()
    lost, *_ = home.recover()
    assert lost.changes == 2
    assert home.reserve(KNOWN).start >= tried.stop
    assert home.reserve(UNKNOWN).start > 900


def test_one_counter_that_is_far_ahead_does_not_spend_the_others(home: Home) -> None:
    with home.open() as store, store.count() as tx:
        counters.reserve(tx, UNKNOWN, CLIENT, 1, None, begin_at=counters.LAST - 20)
    home.reserve(KNOWN)
    home.keep()
    home.reserve(KNOWN, 16)
    home.restore()
    _, raised, spent = home.recover()
    assert (raised, spent) == (1, [])
    assert home.reserve(KNOWN) == range(18, 19)
    assert home.reserve(UNKNOWN) == range(counters.LAST - 19, counters.LAST - 18)


def test_a_counter_that_may_be_at_its_end_is_spent(home: Home) -> None:
    with home.open() as store, store.count() as tx:
        counters.reserve(tx, UNKNOWN, CLIENT, 1, None, begin_at=counters.LAST - 20)
    home.keep()
    home.reserve(UNKNOWN, 20)
    home.restore()
    assert home.recover()[2] == [UNKNOWN]
    with pytest.raises(RefusedError, match="used up"):
        home.reserve(UNKNOWN)


def test_an_anchor_that_is_gone_leaves_the_bound_of_the_policy(home: Home) -> None:
    given = home.reserve(KNOWN, 16), home.reserve(KNOWN, 16)
    home.anchor.unlink()
    with pytest.raises(IntegrityError, match="anchor is gone"):
        home.open()
    lost, *_ = home.recover()
    assert lost.anchor == -1
    assert home.reserve(KNOWN).start == given[-1].stop + JUMP


def test_sequences_of_packages_and_lists_and_generations_rise_above_lost_ones(home: Home, factory: Factory) -> None:
    meter = factory.meter()

    def work() -> tuple[int, int, int]:
        with home.open() as store:
            with store.begin("package", "x", {}) as tx:
                number = packages.next_sequence(tx, "utility", "delivery")
                record = (
                    str(number),
                    Direction.SENT,
                    "delivery",
                    number,
                    "utility",
                    NOW,
                    NOW + timedelta(1),
                    bytes(32),
                )
                packages.add(tx, PackageRecord(*record, "sent", 1))
            with store.begin("crl", "x", {}) as tx:
                crl = certificates.next_crl_number(tx, "CN=i")
                certificates.record_crl(tx, "CN=i", crl, (NOW, NOW), bytes(32))
            with store.begin("key set", "x", {}) as tx:
                generation = key_sets.next_generation(tx, meter.system_title, 0, 1)
                one = factory.key_set(meter, generation)
                key_sets.add(tx, key_sets.authenticate(home.authenticator, one, meter))
        return number, crl, generation

    with home.open() as store, store.begin("meter", "x", {}) as tx:
        meters.add(tx, meter)
    before = work()
    home.keep()
    lost = [work() for _ in range(3)]
    home.restore()
    home.recover()
    after = work()
    assert before == (1, 1, 1)
    assert all(now > then for now, then in zip(after, lost[-1], strict=True))
    assert [now + 1 for now in after] == list(work())


@pytest.mark.parametrize("unknown", [True, False])
def test_a_generation_rises_above_the_lost_ones_and_no_further_than_others_believe(
    home: Home, factory: Factory, *, unknown: bool
) -> None:
    meter = factory.meter()
    with home.open() as store, store.begin("meter", "x", {}) as tx:
        meters.add(tx, meter)
        key_sets.add(tx, key_sets.authenticate(home.authenticator, factory.key_set(meter, 7), meter))
    given = [7]
    for _ in range(2):
        with home.open(Opening.RECOVERY) as store, store.begin("lost", "x", {}) as tx:
            assert tx.before is not None
            recovery.recover(tx, Loss(tx.before.advance, -1 if unknown else tx.before.advance + 10**6, 10**6, 0, 0))
        with home.open() as store, store.read() as tx:
            given.append(key_sets.next_generation(tx, meter.system_title, 0, 1))
    assert given == (
        [7, 7 + 4_001, 7 + 8_001] if unknown else [7, 7 + key_sets.FURTHEST + 1, 7 + key_sets.FURTHEST + 1]
    )
    assert given[-1] - given[0] < MAX_GENERATION_STEP


def test_the_lost_database_is_refused_when_it_comes_back(home: Home, tmp_path: Path) -> None:
    home.reserve(KNOWN)
    home.keep()
    home.reserve(KNOWN)
    put_newest_back = keep(home.url, tmp_path / "newest")
    home.restore()
    home.recover()
    put_newest_back()
    with pytest.raises(IntegrityError, match="restored or cut short"):
        home.open()


def test_a_recovery_is_a_new_epoch_whose_store_has_no_problem(home: Home) -> None:
    home.reserve(KNOWN)
    home.keep()
    home.reserve(KNOWN)
    home.restore()
    home.recover()
    with home.open() as store, store.read() as tx:
        assert list(check(tx)) == []
        assert tx.connection.exec_driver_sql("SELECT max(number) FROM epoch").scalar() == 2
        assert tx.connection.exec_driver_sql("SELECT epoch FROM audit ORDER BY sequence DESC").scalar() == 2


def test_there_is_nothing_to_recover_where_nothing_was_lost_and_no_other_store_is_taken(
    home: Home, tmp_path: Path, authenticator: SoftwareAuthenticator
) -> None:
    home.reserve(KNOWN)
    with pytest.raises(RefusedError, match="as new as its anchor"):
        home.recover()
    other = f"sqlite:{tmp_path / 'other.db'}"
    Store.create(other)
    with Store.open(other, authenticator, "tester") as store, store.begin("x", "y", {}):
        pass
    home.url = other
    with pytest.raises(IntegrityError, match="another one than its anchor knows"):
        home.recover()
