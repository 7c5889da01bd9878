"""One database transaction for the changes that several threads of a process make at about the same time.

A commit syncs the disk, and the anchor is raised after it: both cost more than a change. So a thread whose block is
done leaves the transaction open while another thread waits with a block of its own, and goes on when that one, or a
later one, has committed for all.

| moment                                           | who does it                                               |
|--------------------------------------------------|-----------------------------------------------------------|
| begin                                            | the first block                                           |
| savepoint (but for the first block), block, release | each block in its turn                                 |
| commit, with all that belongs to it              | the last block: nobody waits, or the transaction is full  |
| return, or raise what the commit raised          | every block that did not fail by itself                   |

A block that fails is rolled back to its savepoint and takes nothing else with it; the first one of a transaction has
nobody before it, and takes the transaction along.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from hsmkm.errors import HsmkmError

MOST_BLOCKS = 100
LONGEST_SECONDS = 0.5
"""A transaction that is open for so long takes no further block: whoever waits for its commit was promised an answer,
and another process may wait for the writer's place."""


class SharedTransaction(Protocol):
    """A transaction of the database that several blocks may share, unless it is for one alone."""

    @property
    def for_one(self) -> bool:
        """Whether no second block may join the first."""

    def savepoint(self) -> Callable[[], None]:
        """Set a savepoint; what is given releases it."""

    def back_to_savepoint(self) -> None:
        """Undo what was done since the savepoint; raises where the whole transaction is lost."""

    def commit(self) -> None:
        """Make everything durable; what it raises, every block raises."""

    def roll_back(self) -> None:
        """Undo everything; never raises."""


S = TypeVar("S", bound=SharedTransaction)


class UncommittedError(HsmkmError):
    """The thread that was to commit for others was interrupted; nothing of the transaction is sure to be there."""

    advice = "see what is true with the command that lists it, and give the command again"


@dataclass(slots=True)
class _Open(Generic[S]):
    """A transaction under way, how many blocks are in it, and how it ended."""

    transaction: S
    begun: float = field(default_factory=time.monotonic)
    blocks: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    @property
    def full(self) -> bool:
        most = 1 if self.transaction.for_one else MOST_BLOCKS
        return self.blocks >= most or time.monotonic() - self.begun > LONGEST_SECONDS


class GroupCommit(Generic[S]):
    """Gives the threads of a process their turns; `begin` opens a transaction."""

    def __init__(self, begin: Callable[[], S]) -> None:
        self._begin = begin
        self._turn = threading.Condition()
        self._taken = False
        self._waiting = 0
        self._open: _Open[S] | None = None

    @property
    def waiting(self) -> int:
        """How many threads wait for their turn."""
        return self._waiting

    @contextmanager
    def block(self) -> Iterator[S]:
        """Do one block of changes; it is durable at the end, as are the blocks that it shares a transaction with."""
        self._take_turn()
        try:
            found = self._block_begins()
        except BaseException:
            self._give_turn()
            raise
        try:
            release = found.transaction.savepoint() if found.blocks else _nothing
            yield found.transaction
            release()
        except BaseException:
            self._block_failed(found)
            raise
        found.blocks += 1
        self._block_ends(found)
        found.ended.wait()
        if found.failure is not None:
            raise _for_another(found.failure) from found.failure

    def _block_begins(self) -> _Open[S]:
        if self._open is None:
            self._open = _Open(self._begin())
        return self._open

    def _block_ends(self, found: _Open[S]) -> None:
        """Leave the transaction to the next block, or commit it for all where there is none."""
        if self._left_to_next(found):
            return
        try:
            self._commit(found)
        finally:
            self._give_turn()

    def _block_failed(self, found: _Open[S]) -> None:
        """Undo what the block did; commit for the others where no further block will."""
        if not found.blocks:
            return self._give_up(found, None)
        try:
            found.transaction.back_to_savepoint()
        except BaseException as error:  # noqa: BLE001 - the transaction is lost, and every block in it raises why
            return self._give_up(found, error)
        with suppress(HsmkmError):  # it is the others' to raise; this block has an error of its own
            self._block_ends(found)
        return None

    def _left_to_next(self, found: _Open[S]) -> bool:
        """Give the turn, with the transaction, to a block that waits; the turn is kept where there is none to join.

        In one step: a thread that waits may be interrupted, and must know then whether the others rely on it.
        """
        with self._turn:
            if found.full or not self._waiting:
                return False
            self._taken = False
            self._turn.notify()
            return True

    def _commit(self, found: _Open[S]) -> None:
        self._open = None
        try:
            found.transaction.commit()
        except BaseException as error:
            found.failure = error
            raise
        finally:
            found.ended.set()

    def _give_up(self, found: _Open[S], error: BaseException | None) -> None:
        try:
            self._lose(found, error)
        finally:
            self._give_turn()

    def _lose(self, found: _Open[S], error: BaseException | None) -> None:
        self._open = None
        found.transaction.roll_back()
        found.failure = error
        found.ended.set()

    def _take_turn(self) -> None:
        with self._turn:
            self._waiting += 1
            try:
                while self._taken:
                    self._turn.wait()
            except BaseException:
                self._left_alone()
                raise
            finally:
                self._waiting -= 1
            self._taken = True

    def _left_alone(self) -> None:
        """See that a transaction is not left to a thread that was interrupted while it waited for its turn."""
        if not self._taken and self._waiting == 1 and self._open is not None:
            self._lose(self._open, UncommittedError("the thread that was to commit for others was interrupted"))
        self._turn.notify()

    def _give_turn(self) -> None:
        with self._turn:
            self._taken = False
            self._turn.notify()


def _nothing() -> None:
    """Release no savepoint."""


def _for_another(error: BaseException) -> HsmkmError:
    """Give an error again for another thread, whose traceback is its own."""
    if isinstance(error, HsmkmError):
        return copy.copy(error)
    return UncommittedError(f"the thread that committed for others met {type(error).__name__}")
