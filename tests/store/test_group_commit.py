"""Threads of one process share a transaction: one commit, one raising of the anchor, an audit record for each block."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, exc

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store import audit, counters, group_commit, meters
from hsmkm.store.anchor import FileAnchor
from hsmkm.store.check import check
from hsmkm.store.failures import StoreUnavailableError
from hsmkm.store.group_commit import GroupCommit, UncommittedError
from hsmkm.store.shared_change import SharedChange
from hsmkm.store.store import Store

if TYPE_CHECKING:
    from tests.store.conftest import Factory, SoftwareAuthenticator

PATIENCE = 30
CLIENT = b"UTI00004"


class WatchedAnchor(FileAnchor):
    """A file that can be held up or fail, and how often it was written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.written = 0
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.broken = False

    def write(self, content: bytes) -> None:
        self.reached.set()
        assert self.go_on.wait(PATIENCE)
        if self.broken:
            raise IntegrityError("the anchor cannot be written")
        self.written += 1
        super().write(content)


@dataclass
class Line:
    """Threads that wait one behind the other at a store: the first is in its block until all others wait."""

    store: Store
    pool: ThreadPoolExecutor
    futures: list[Future[object]] = field(default_factory=list)

    def run(self, *blocks: Callable[[], object]) -> list[BaseException | None]:
        """Run the first block, with the others behind it in this order; what each raised."""
        for number, block in enumerate(blocks):
            wait_until(lambda: self.store._group.waiting == max(len(self.futures) - 1, 0))
            self.futures.append(self.pool.submit(block))
            if not number:
                assert self.inside.wait(PATIENCE)
        wait_until(lambda: self.store._group.waiting == len(blocks) - 1)
        self.leave.set()
        return [future.exception(PATIENCE) for future in self.futures]

    inside: threading.Event = field(default_factory=threading.Event)
    leave: threading.Event = field(default_factory=threading.Event)

    def first(self, work: Callable[[], None]) -> Callable[[], None]:
        """Let a block stay open until the others wait; `work` is done in it before."""

        def block() -> None:
            work()
            self.inside.set()
            assert self.leave.wait(PATIENCE)

        return block


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def anchor(tmp_path: Path) -> WatchedAnchor:
    return WatchedAnchor(tmp_path / "elsewhere" / "anchor")


@pytest.fixture
def shared(
    url: str, authenticator: SoftwareAuthenticator, anchor: WatchedAnchor, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    monkeypatch.setattr(group_commit, "LONGEST_SECONDS", PATIENCE)
    with Store.open(url, authenticator, "tester", anchor=anchor) as opened:
        with opened.begin("home init", "0", {}):
            pass
        anchor.written = 0
        anchor.reached.clear()
        yield opened


@pytest.fixture
def line(shared: Store) -> Iterator[Line]:
    with ThreadPoolExecutor(8) as pool:
        yield Line(shared, pool)


@pytest.fixture
def commits(shared: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each commit of a change."""
    assert shared.guard is not None  # what its making committed does not count
    found: list[str] = []
    commit = SharedChange.commit

    def counted(self: SharedChange) -> None:
        found.append("commit")
        commit(self)

    monkeypatch.setattr(SharedChange, "commit", counted)
    return found


def adding(line: Line, factory: Factory, number: int, error: Exception | None = None) -> Callable[[], None]:
    """A block that adds a meter; the first of a line waits for the others, and one with an error fails behind it."""

    def add() -> None:
        with line.store.begin("meter add", str(number), {}) as tx:
            meters.add(tx, factory.meter(number))
            if number == 1:
                line.first(lambda: None)()
            if error is not None:
                raise error

    return add


def reserving(line: Line, number: int, given: list[range]) -> Callable[[], None]:
    def reserve() -> None:
        with line.store.count() as tx:
            given.append(counters.reserve(tx, bytes(15) + bytes([number]), CLIENT, 16, None))

    return reserve


def held(store: Store) -> list[str]:
    with store.read() as tx:
        return [meter.title[-1] for meter in meters.listing(tx)]


def records(store: Store) -> list[tuple[int, str]]:
    with store.read() as tx:
        assert audit.verify(tx) == []
        return [(record.sequence, record.subject) for record in audit.log(tx)]


def sound(store: Store) -> None:
    with store.read() as tx:
        found = [problem for problem in check(tx) if problem.table != "meters"]
    assert found == []


def test_blocks_of_several_threads_share_a_commit_and_an_anchor_and_have_a_record_each(
    line: Line, factory: Factory, anchor: WatchedAnchor, commits: list[str]
) -> None:
    given: list[range] = []
    blocks = [adding(line, factory, 1), adding(line, factory, 2), reserving(line, 9, given), adding(line, factory, 3)]
    assert line.run(*blocks) == [None] * 4
    assert (len(commits), anchor.written) == (1, 1)
    assert held(line.store) == ["1", "2", "3"]
    assert [sequence for sequence, _ in records(line.store)] == [1, 2, 3, 4]
    assert given == [range(1, 17)]
    sound(line.store)


def test_two_blocks_for_one_counter_never_get_the_same_values(line: Line, factory: Factory) -> None:
    given: list[range] = []
    blocks = [reserving(line, 9, given) for _ in range(5)]
    assert line.run(adding(line, factory, 1), *blocks) == [None] * 6
    values = [value for block in given for value in block]
    assert len(set(values)) == len(values) == 5 * 16
    sound(line.store)


def test_no_block_returns_before_the_anchor_is_raised(line: Line, factory: Factory, anchor: WatchedAnchor) -> None:
    anchor.go_on.clear()
    blocks = [adding(line, factory, number) for number in (1, 2, 3)]
    futures = []
    with ThreadPoolExecutor(1) as other:
        ran = other.submit(line.run, *blocks)
        assert anchor.reached.wait(PATIENCE)
        futures = list(line.futures)
        assert [future.done() for future in futures] == [False] * 3
        anchor.go_on.set()
        assert ran.result(PATIENCE) == [None] * 3


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_block_that_fails_takes_nothing_else_with_it(
    line: Line, factory: Factory, anchor: WatchedAnchor, failing: int
) -> None:
    error = RefusedError("no")
    blocks = [adding(line, factory, number, error if number == failing else None) for number in (1, 2, 3)]
    assert line.run(*blocks) == [error if number == failing else None for number in (1, 2, 3)]
    assert held(line.store) == [str(number) for number in (1, 2, 3) if number != failing]
    assert [sequence for sequence, _ in records(line.store)] == [1, 2, 3]
    assert anchor.written == 1
    sound(line.store)


def test_a_row_that_is_there_already_fails_its_own_block_only(line: Line, factory: Factory) -> None:
    found = line.run(adding(line, factory, 1), adding(line, factory, 2), adding(line, factory, 2))
    assert [type(error) for error in found].count(RefusedError) == 1
    assert held(line.store) == ["1", "2"]
    sound(line.store)


def test_a_commit_that_fails_fails_every_block_and_leaves_nothing(
    line: Line, factory: Factory, anchor: WatchedAnchor
) -> None:
    def full(_: object) -> None:
        raise exc.OperationalError("COMMIT", {}, Exception("database or disk is full"))

    event.listen(line.store._engine, "commit", full)
    found = line.run(*[adding(line, factory, number) for number in (1, 2, 3)])
    event.remove(line.store._engine, "commit", full)
    assert [type(error) for error in found] == [StoreUnavailableError] * 3
    assert len({id(error) for error in found}) == 3
    assert all("disk is full" in str(error) for error in found)
    assert (held(line.store), records(line.store), anchor.written) == ([], [(1, "0")], 0)
    with line.store.begin("meter add", "4", {}) as tx:
        meters.add(tx, factory.meter(4))
    sound(line.store)


def test_an_anchor_that_fails_fails_every_block_and_what_was_committed_is_taken_at_the_next_opening(
    line: Line, factory: Factory, anchor: WatchedAnchor, url: str, authenticator: SoftwareAuthenticator
) -> None:
    anchor.broken = True
    found = line.run(*[adding(line, factory, number) for number in (1, 2, 3)])
    assert [type(error) for error in found] == [IntegrityError] * 3
    assert anchor.written == 0
    anchor.broken = False
    with Store.open(url, authenticator, "tester", anchor=anchor) as again:
        assert held(again) == ["1", "2", "3"]
        assert anchor.written == 1
        sound(again)


def test_a_block_that_the_database_gives_up_with_the_whole_transaction_fails_everybody(
    line: Line, factory: Factory
) -> None:
    def lost() -> None:
        with line.store.begin("meter add", "2", {}) as tx:
            tx.connection.exec_driver_sql("ROLLBACK")
            raise RefusedError("no")

    found = line.run(adding(line, factory, 1), lost, adding(line, factory, 3))
    assert [type(error) for error in found[:2]] == [StoreUnavailableError, RefusedError]
    assert found[2] is None
    assert held(line.store) == ["3"]
    sound(line.store)


def test_a_transaction_takes_so_many_blocks_and_no_more(
    line: Line, factory: Factory, anchor: WatchedAnchor, commits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MOST_BLOCKS", 2)
    assert line.run(*[adding(line, factory, number) for number in (1, 2, 3, 4, 5)]) == [None] * 5
    assert (len(commits), anchor.written) == (3, 3)


def test_the_first_change_of_a_store_is_alone_so_that_a_crash_before_its_anchor_is_told_from_a_lost_one(
    url: str, authenticator: SoftwareAuthenticator, anchor: WatchedAnchor, factory: Factory
) -> None:
    with Store.open(url, authenticator, "tester", anchor=anchor) as new, ThreadPoolExecutor(3) as pool:
        line = Line(new, pool)
        assert line.run(*[adding(line, factory, number) for number in (1, 2, 3)]) == [None] * 3
    assert anchor.written == 2


def test_a_change_inside_a_change_is_still_refused(shared: Store) -> None:
    with pytest.raises(RuntimeError, match="already open"), shared.begin("a", "b", {}), shared.count():
        pass


class Rolls:
    """A shared transaction that notes what becomes of it."""

    def __init__(self, ends: list[str]) -> None:
        self.ends = ends

    for_one = False

    def savepoint(self) -> Callable[[], None]:
        return lambda: None

    def back_to_savepoint(self) -> None:
        pass

    def commit(self) -> None:
        self.ends.append("commit")

    def roll_back(self) -> None:
        self.ends.append("roll back")


def test_a_thread_that_is_interrupted_as_its_turn_comes_leaves_nobody_waiting() -> None:
    ends: list[str] = []
    group = GroupCommit(lambda: Rolls(ends))
    wait = group._turn.wait

    def interrupted(timeout: float | None = None) -> bool:
        wait(timeout)
        raise KeyboardInterrupt

    def block(inside: threading.Event, leave: threading.Event) -> None:
        with group.block():
            inside.set()
            assert leave.wait(PATIENCE)

    inside, leave = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(block, inside, leave)
        assert inside.wait(PATIENCE)
        group._turn.wait = interrupted  # type: ignore[method-assign] # as a signal does to the main thread
        second = pool.submit(block, inside, leave)
        wait_until(lambda: group.waiting == 1)
        leave.set()
        assert isinstance(second.exception(PATIENCE), KeyboardInterrupt)
        assert isinstance(first.exception(PATIENCE), UncommittedError)
    assert ends == ["roll back"]
    assert group.waiting == 0


def test_a_block_that_cannot_be_undone_leaves_nobody_waiting() -> None:
    class Broken(Rolls):
        def back_to_savepoint(self) -> None:
            raise ValueError("nobody thought of it")

    ends: list[str] = []
    group = GroupCommit(lambda: Broken(ends))
    inside, leave = threading.Event(), threading.Event()

    def block() -> None:
        with group.block():
            inside.set()
            assert leave.wait(PATIENCE)

    def fail() -> None:
        with group.block():
            raise RefusedError("no")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(block)
        assert inside.wait(PATIENCE)
        second = pool.submit(fail)
        wait_until(lambda: group.waiting == 1)
        leave.set()
        assert isinstance(second.exception(PATIENCE), RefusedError)
        assert isinstance(first.exception(PATIENCE), UncommittedError)
    assert ends == ["roll back"]
    with group.block():
        pass
    assert ends == ["roll back", "commit"]


def test_a_thread_that_is_interrupted_while_it_commits_tells_the_others() -> None:
    class Interrupted(Rolls):
        def commit(self) -> None:
            raise KeyboardInterrupt

    ends: list[str] = []
    group = GroupCommit(lambda: Interrupted(ends))
    inside, leave = threading.Event(), threading.Event()

    def block() -> None:
        with group.block():
            inside.set()
            assert leave.wait(PATIENCE)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(block)
        assert inside.wait(PATIENCE)
        second = pool.submit(block)
        wait_until(lambda: group.waiting == 1)
        leave.set()
        assert isinstance(second.exception(PATIENCE), KeyboardInterrupt)
        assert isinstance(first.exception(PATIENCE), UncommittedError)
