"""The hands of a party: workers with the token alone, which work through batches while the party keeps the store.

A party starts them when there is more to do than a batch, and ends them when it is closed. They get the PIN from it,
without asking its source again, and end when it does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Concatenate, TypeVar

from hsmkm.token.pool import Shape, WorkerPool
from hsmkm.token.session import TokenSession, open_session
from hsmkm.token.types import TokenSettings
from hsmkm.token.vault import Vault
from hsmkm.token.workers import Worker

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Hand:
    """A token that is open for batches; `own_sessions`: the keys of a batch share a session that ends with it."""

    vault: Vault
    own_sessions: bool = False

    def between_calls(self) -> None:
        """Turn to newer storage and integrity keys, where another process made them and we met them."""
        self.vault.keyring.turn()

    @property
    def worn(self) -> bool:
        """Whether the module leaked so much that it should be initialised anew."""
        return self.vault.session.worn

    def recycle(self) -> None:
        """Begin a new generation of the token's session, when nothing is under way."""
        self.vault.session.reconnect()


@contextmanager
def open_hand(settings: TokenSettings, pin: int, own_sessions: bool) -> Iterator[Hand]:  # noqa: FBT001 - it travels
    """Log in with the PIN of a descriptor, which is closed then."""
    with open_session(settings) as session:
        os.close(pin)
        yield Hand(Vault(session), own_sessions)


class Hands:
    """The workers of one party, which are started when they are needed first."""

    def __init__(self, vault: Vault, shape: Shape, token_seconds: float) -> None:
        self._vault = vault
        self._token_seconds = token_seconds
        self._pool: WorkerPool[Hand] | None = None
        self._starting = threading.Lock()
        self.shape = shape

    def work(
        self, meters: int, function: Callable[Concatenate[Hand, ...], R], batches: Iterable[tuple[object, ...]]
    ) -> Generator[R, None, None]:
        """Run `function(hand, *batch)` for each batch of so many meters in all; the answers, in the order of batches.

        A batch or less is done by the party itself, before workers would have started.
        """
        if meters <= self.shape.batch:
            hand = Hand(self._vault)
            return (function(hand, *batch) for batch in batches)
        with self._starting:
            if self._pool is None:
                self._pool = self._start(self._vault.session)
        return self._pool.map(function, batches)

    def _start(self, session: TokenSession) -> WorkerPool[Hand]:
        with session.lent_pin() as pin:
            start = partial(
                Worker,
                open_hand,
                replace(session.settings, pin=f"fd:{pin}"),
                pin,
                self.shape.threads > 1,
                inherit=(pin,),
                token_seconds=self._token_seconds,
                threads=self.shape.threads,
            )
            return WorkerPool(start, self.shape)

    def close(self) -> None:
        """End the workers, if there are any."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
