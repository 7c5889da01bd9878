"""Keeps the state row and the anchor in step with every transaction, and refuses a store that went back.

A process refuses at opening what its anchor contradicts, at each change what it saw itself before, and after each
commit what another process anchored meanwhile and this database does not hold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

from hsmkm.errors import IntegrityError, PolicyError, RefusedError
from hsmkm.store import anchor as anchors
from hsmkm.store import state, sums
from hsmkm.store.anchor import Anchor, Anchored
from hsmkm.store.failures import StoreUnavailableError
from hsmkm.store.state import StoreState

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from hsmkm.store.store import Authenticator, Transaction

ROWS_AT_OPENING = 20_000
"""A store of up to so many rows is compared with its sums whenever it is opened (0.1 s); a larger one by a check."""


class Opening(StrEnum):
    """What a store is opened for, and so what it is compared with."""

    USE = "use"
    SEALING = "sealing"
    RECOVERY = "recovery"
    INSPECTION = "inspection"


class Guard:
    """What one open store knows of its state; `read` begins a transaction that reads.

    `alone` keeps the other hosts of the store from its anchor; what it raises at its end says that it failed to.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        anchor: Anchor | None,
        read: Callable[[], AbstractContextManager[Transaction]],
        alone: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.authenticator = authenticator
        self.anchor = anchor
        self._read = read
        self._alone = alone
        self._known: StoreState | None = None
        self._opening = Opening.USE
        self._lock = threading.Lock()

    def opened(self, opening: Opening) -> None:
        """Refuse a store that its anchor contradicts (IntegrityError), or that must be sealed first (RefusedError).

        For sealing the state may be missing, unless the anchor knows one; for recovery and inspection nothing is asked.
        """
        self._opening = opening
        if opening in (Opening.USE, Opening.SEALING):
            self._compare()

    def contradiction(self) -> str:
        """Say what the anchor has against the store; empty if nothing."""
        try:
            anchored = self.anchored()
            with self._read() as tx:
                found = state.fetch(tx)
            if self.anchor is not None and found is not None:
                anchors.refuse_older(found, anchored)
        except IntegrityError as error:
            return error.message
        return ""

    def _compare(self) -> None:
        anchored = self.anchored()
        with self._read() as tx:
            found = state.fetch(tx)
            if found is None:
                return self._unsealed(tx, anchored)
            if self._opening is Opening.USE and state.seals_since(found.schema):
                raise RefusedError("the store must be upgraded with the token", hint="hsmkm store upgrade")
            if self.anchor is not None:
                anchors.refuse_older(found, anchored)
            state.newest_record(tx, found)
            _refuse_missing(tx, found)
        self._learn(found)
        if self.anchor is not None and (anchored is None or found.advance > anchored.advance):
            self.committed(found)  # a crash between a commit and its raising left it behind
        return None

    def enter(self, tx: Transaction) -> StoreState:
        """Give the verified state that a change begins from; IntegrityError if it is older than one seen before."""
        if self._opening is Opening.INSPECTION:
            raise PolicyError("the store is open for a check only", hint="a check changes nothing")
        known = self._known
        found = state.fetch(tx, known)
        if found is None:
            if known is not None or not (self._opening is Opening.SEALING or state.is_new(tx)):
                raise IntegrityError("the store has lost its state", hint=anchors.RECOVER)
            return state.first(tx)
        if known is not None and found.advance < known.advance:
            text = f"the store was restored or cut short meanwhile: from {known.advance} to {found.advance}"
            raise IntegrityError(text, hint=anchors.RECOVER)
        if known is not None and found.advance == known.advance and found != known:
            raise IntegrityError("the store was exchanged meanwhile", hint=anchors.RECOVER)
        return found

    def committed(self, after: StoreState) -> None:
        """Remember a state that is durable, and raise the anchor to it unless another did so already.

        Raises IntegrityError if the anchor contradicts it.
        """
        self._learn(after)
        if self.anchor is None:
            return
        self._raise(self.anchor, after)

    def _raise(self, anchor: Anchor, after: StoreState) -> None:
        written = False
        try:
            with self._alone(), anchor.exclusive():
                anchored = anchors.held(anchor, self.authenticator)
                recovered = self._opening is Opening.RECOVERY
                if recovered or anchored is None or anchored.advance < after.advance:
                    if not recovered:
                        anchors.refuse_older(after, anchored)
                    written = True
                    anchor.write(Anchored.of(after).encode(self.authenticator))
        except StoreUnavailableError:
            if not written:
                raise
            # The lock went with its connection, so another host may have raised the anchor, and we have put it back.
            return self._raise(anchor, self._now())
        if not written:
            anchors.refuse_older(after if anchored and anchored.advance == after.advance else self._now(), anchored)
        return None

    def anchored(self) -> Anchored | None:
        """Read the anchor; IntegrityError if it does not fit its MAC."""
        if self.anchor is None:
            return None
        with self._alone(), self.anchor.exclusive():
            return anchors.held(self.anchor, self.authenticator)

    def _now(self) -> StoreState:
        with self._read() as tx:
            found = state.fetch(tx, self._known)
        if found is None:
            raise IntegrityError("the store has lost its state", hint=anchors.RECOVER)
        return found

    def _learn(self, found: StoreState) -> None:
        with self._lock:
            if self._known is None or found.advance > self._known.advance:
                self._known = found

    def _unsealed(self, tx: Transaction, anchored: Anchored | None) -> None:
        if anchored is not None:
            raise IntegrityError("the store has no state, and its anchor knows one", hint=anchors.RECOVER)
        if self._opening is not Opening.SEALING and not state.is_new(tx):
            raise RefusedError("the store must be upgraded with the token", hint="hsmkm store upgrade")


def _refuse_missing(tx: Transaction, found: StoreState) -> None:
    """Raise IntegrityError if a store that is not too large for that lacks rows, or has them of an earlier time."""
    if sum(count for count, _ in found.sums.values()) <= ROWS_AT_OPENING:
        later = state.not_summed(found.schema)
        for table, text in sums.differences(tx.connection, found.sums, later):
            raise IntegrityError(f"{table}: {text}", hint="hsmkm store check tells more; then restore a backup")
