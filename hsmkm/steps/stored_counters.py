"""The counters of a conversation: ours from the store's allocator, the meter's checked against what the store knows.

Ours are durable in blocks before their first value is used. The meter's are durable at once, or, where the work says so
(`Conversation.defers`), with the work's next transaction: together with, or before, all that follows from its answers.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hsmkm.steps.party import utc_now
from hsmkm.store import counters, leases
from hsmkm.store.key_sets import KeySet
from hsmkm.store.store import Transaction
from hsmkm.token.types import KeyRole

if TYPE_CHECKING:
    from hsmkm.steps.communicate import Conversation

LEASE_SECONDS = 300


@dataclass(slots=True)
class Ahead:
    """What one piece of work is ahead of the store, or behind it.

    `reserved`: values of our counters that are durable and not in use yet, by key. `heard`: the first and the last
    counter of the meter's answers that are not durable yet, by key; `lowest`: what it may not fall below.
    """

    reserved: dict[bytes, range] = field(default_factory=dict)
    heard: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    lowest: dict[bytes, int] = field(default_factory=dict)


class StoredCounter:
    """The invocation counter of one key and our title; blocks of it are durable before their first value is used."""

    def __init__(self, speaking: Conversation, identity: bytes) -> None:
        self._speaking = speaking
        self._identity = identity
        self._block: deque[int] = deque()
        self._last = 0
        self.hint: int | None = None

    def next(self) -> int:
        """Give the next value; RefusedError when the counter is used up or the lease is lost."""
        if not self._block:
            self._block.extend(self._reserve())
        self._last = self._block.popleft()
        return self._last

    def try_hint(self, hint: int) -> None:
        """Go on above what the meter told in clear, without believing it yet."""
        self.hint = hint
        self._block.clear()

    def _reserve(self) -> range:
        speaking, party = self._speaking, self._speaking.party
        given = speaking.ahead.reserved.pop(self._identity, None)
        if given is not None and self.hint is None:
            return given
        count, title = party.settings.dlms.counter_block, speaking.client_title
        with party.store.count() as tx:
            leases.renew(tx, speaking.lease, LEASE_SECONDS, utc_now())
            if self.hint is None:
                return counters.reserve(tx, self._identity, title, count, speaking.lease)
            jump = party.settings.policy.max_counter_jump
            return counters.reserve_trial(tx, self._identity, title, self.hint, count, jump, speaking.lease)

    def authenticated(self) -> None:
        """Believe the hint: an answer that its keys protect came to a value above it."""
        if self.hint is None:
            return
        speaking = self._speaking
        with speaking.party.store.count() as tx:
            counters.confirm_trial(tx, self._identity, speaking.client_title, self._last)
        self.hint = None
        self._block.clear()


class StoredReceiveCounter:
    """The lowest acceptable counter of the meter under one key, durable."""

    def __init__(self, speaking: Conversation, identity: bytes) -> None:
        self._speaking = speaking
        self._identity = identity

    def accept(self, value: int) -> None:
        """Take the counter of an authenticated answer; IntegrityError for a replay."""
        speaking = self._speaking
        title = speaking.meter.system_title
        if speaking.defers:
            self._hear(value)
            return
        with speaking.party.store.count() as tx:
            speaking.settle(tx)
            counters.accept_received(tx, self._identity, title, value)

    def _hear(self, value: int) -> None:
        """Check a value as the store would, and keep it until the work's next transaction."""
        speaking, ahead = self._speaking, self._speaking.ahead
        title = speaking.meter.system_title
        if self._identity not in ahead.lowest:
            with speaking.party.store.read() as tx:
                ahead.lowest[self._identity] = counters.lowest_received(tx, self._identity, title)
        counters.refuse_repeated(title, value, ahead.lowest[self._identity])
        first, _ = ahead.heard.get(self._identity, (value, value))
        ahead.heard[self._identity] = first, value
        ahead.lowest[self._identity] = value + 1


def look_ahead(tx: Transaction, speaking: Conversation, key_set: KeySet) -> None:
    """Reserve, in a transaction of the work, what the next association under a key set takes of the GUEK's counter.

    A counter that was never used is left alone: the meter is asked first where it stands.
    """
    identity, count = key_set.key(KeyRole.GUEK).identity, speaking.party.settings.dlms.counter_block
    given = counters.reserve_more(tx, identity, speaking.client_title, count, speaking.lease)
    if given is not None:
        speaking.ahead.reserved[identity] = given
    heard = heard_under(speaking, key_set)
    speaking.ahead.lowest[heard] = counters.lowest_received(tx, heard, speaking.meter.system_title)


def next_value_of(speaking: Conversation, identity: bytes) -> int:
    """Say which value of our counter comes next; 1 where none was ever used."""
    reserved = speaking.ahead.reserved.get(identity)
    if reserved is not None:
        return reserved.start
    with speaking.party.store.read() as tx:
        known = counters.current(tx, identity, speaking.client_title)
    return known.next if known else 1


def heard_under(speaking: Conversation, key_set: KeySet) -> bytes:
    """Name the meter's counter under a GUEK, 16 octets.

    A model's initial GUEK may be that of several associations, and the meter counts in each of them apart.
    """
    identity = key_set.key(KeyRole.GUEK).identity
    if key_set.ref.generation or speaking.is_first:
        return identity
    place = bytes([speaking.setup]) + speaking.client.to_bytes(2, "big")
    return hashlib.sha256(identity + place).digest()[: len(identity)]
