"""The transaction of the database that blocks of changes share, with what is written once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import exc

from hsmkm.store import state
from hsmkm.store.failures import database_errors
from hsmkm.store.guard import Guard
from hsmkm.store.state import StoreState

if TYPE_CHECKING:
    from hsmkm.store.store import Transaction


class SharedChange:
    """One transaction of the database, which the blocks of several threads may share."""

    def __init__(self, tx: Transaction, guard: Guard, found: StoreState) -> None:
        self.connection = tx.connection
        self.state = found
        """The state after the blocks so far; in the database it is written once, before the commit."""
        self._tx = tx
        self._guard = guard
        self._newest: tuple[int, bytes] | None = None
        self._changed = False
        self.for_one = not found.advance
        """The first change of a store stands alone: a crash before its anchor must not look like one that is gone."""

    def newest_record(self) -> tuple[int, bytes]:
        """Give sequence and hash of the newest audit record, compared with the database once."""
        if self._newest is None:
            self._newest = state.newest_record(self._tx, self.state)
        return self.state.audit_sequence, self.state.audit_hash

    def changed_to(self, after: StoreState) -> None:
        """Take note of the state after a block that changed something."""
        self.state, self._changed = after, True

    def savepoint(self) -> Callable[[], None]:
        """Set a savepoint before a block."""
        self.connection.exec_driver_sql("SAVEPOINT block")
        return self._release

    def back_to_savepoint(self) -> None:
        """Undo a block; StoreUnavailableError where the database has given up the whole transaction."""
        with database_errors():
            self.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT block")
            self._release()

    def _release(self) -> None:
        self.connection.exec_driver_sql("RELEASE SAVEPOINT block")

    def commit(self) -> None:
        """Write the state, commit, and raise the anchor."""
        try:
            with database_errors():
                after = state.write(self._tx, self.state) if self._changed else None
                self.connection.commit()
        finally:
            self.roll_back()
        if after is not None:
            self._guard.committed(after)

    def roll_back(self) -> None:
        """Undo everything that is not committed."""
        with suppress(exc.DBAPIError):  # a connection that is gone has undone it already
            self.connection.rollback()
        with suppress(exc.DBAPIError):
            self.connection.close()
