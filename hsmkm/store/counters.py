"""Invocation counters: no value is handed out twice for one key and one client, whatever a meter or a network says.

A counter belongs to a key (its identity, 16 octets) and the system title of the client that uses it (8 octets). What a
function returns may be used once its transaction is committed, never before. A value is 1 to 2**32 - 1.

    next                    the lowest value that was never handed out in order
    [trial_low, trial_next) values that were, or may have been, tried out of order; empty if both are absent

A meter that says which value it expects may lie as long as its answer is not authenticated. So such a hint is tried
with values of the interval only (`reserve_trial`), and the counter itself moves when the meter has answered under the
key (`confirm_trial`, `raise_to`). There is one interval: a hint below it stretches it downwards, and the values between
are given up, so that nothing is remembered but two numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import tuple_

from hsmkm.dlms.suspicion import RepeatedCounterError
from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store import leases
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.canonical import Value
from hsmkm.store.key_set import IDENTITY_OCTETS, TITLE_OCTETS
from hsmkm.store.leases import Lease
from hsmkm.store.schema import counters, receive_counters
from hsmkm.store.store import StoredRow, Transaction

LAST = 2**32 - 1
"""The highest invocation counter (IEC 62056-5-3, 4 octets); beyond it a key must be renewed."""

PAGE = 1000
ROWS = AuthenticatedTable(
    "hsmkm counter/1",
    counters,
    ("identity", "client_title"),
    ("identity", "client_title", "next", "trial_low", "trial_next"),
)
RECEIVE_ROWS = AuthenticatedTable(
    "hsmkm receive counter/1",
    receive_counters,
    ("identity", "server_title"),
    ("identity", "server_title", "lowest"),
)


@dataclass(frozen=True, slots=True)
class Counter:
    """Where a counter stands; the interval of trials is empty where both its ends are equal."""

    next: int
    trial_low: int = 0
    trial_next: int = 0

    def take(self, count: int) -> tuple[range, Counter]:
        """Hand out `count` values in order, behind the interval if they would touch it."""
        start = self.next
        if start < self.trial_next and start + count > self.trial_low:
            start = self.trial_next
        given = _block(start, count)
        return given, self.moved_to(given.stop)

    def try_after(self, hint: int, count: int) -> tuple[range, Counter]:
        """Hand out `count` values behind the hint without moving the counter; behind the interval if they touch it."""
        start = max(self.next, hint + 1)
        low = start
        if self.trial_next > self.trial_low:
            if start + count > self.trial_low:
                start = max(start, self.trial_next)
            low = min(low, self.trial_low)
        given = _block(start, count)
        return given, Counter(self.next, low, max(self.trial_next, given.stop))

    def moved_to(self, value: int) -> Counter:
        """Make `value` the next one, if it is higher; an interval that lies below it is forgotten."""
        if value >= self.trial_next:
            return Counter(max(value, self.next))
        return Counter(max(value, self.next), self.trial_low, self.trial_next)


def reserve(
    tx: Transaction, identity: bytes, client_title: bytes, count: int, lease: Lease | None, *, begin_at: int = 1
) -> range:
    """Reserve `count` values in order; the first ever is `begin_at`.

    Raises RefusedError if the lease was lost or the key is used up, IntegrityError if the row was altered.
    """
    if lease is not None:
        leases.check(tx, lease)
    row = _row(tx, identity, client_title)
    given, counter = _counter(row, _begin(tx, begin_at)).take(count)
    _write(tx, row, identity, client_title, counter)
    return given


def reserve_more(
    tx: Transaction, identity: bytes, client_title: bytes, count: int, lease: Lease | None
) -> range | None:
    """Reserve `count` values in order as `reserve` does, where some were reserved before; else nothing."""
    row = _row(tx, identity, client_title)
    if row is None:
        return None
    if lease is not None:
        leases.check(tx, lease)
    given, counter = _counter(row, 1).take(count)
    _write(tx, row, identity, client_title, counter)
    return given


def raise_to(tx: Transaction, identity: bytes, client_title: bytes, value: int, max_jump: int) -> None:
    """Believe an authenticated answer that `value` was used: what is next is higher.

    Raises RefusedError if that is more than `max_jump` above what is next now.
    """
    row = _row(tx, identity, client_title)
    counter = _counter(row, _begin(tx, 1))
    _check_jump(counter, value, max_jump)
    if value >= counter.next:
        _write(tx, row, identity, client_title, counter.moved_to(value + 1))


def reserve_trial(
    tx: Transaction,
    identity: bytes,
    client_title: bytes,
    hint: int,
    count: int,
    max_jump: int,
    lease: Lease | None = None,
) -> range:
    """Reserve `count` values above a hint that nobody authenticated; what is next in order stays as it is.

    Raises RefusedError if the hint is more than `max_jump` above what is next, the lease was lost, or the key is spent.
    """
    if lease is not None:
        leases.check(tx, lease)
    row = _row(tx, identity, client_title)
    counter = _counter(row, _begin(tx, 1))
    _check_jump(counter, hint, max_jump)
    given, tried = counter.try_after(hint, count)
    _write(tx, row, identity, client_title, tried)
    return given


def confirm_trial(tx: Transaction, identity: bytes, client_title: bytes, used: int) -> None:
    """Believe a trial whose value `used` was answered under the key: order goes on above it.

    Values of the interval above it, which another association may be trying, stay unconfirmed.
    """
    row = _row(tx, identity, client_title)
    counter = _counter(row, 1)
    if used >= counter.next and counter.trial_low <= used < counter.trial_next:
        _write(tx, row, identity, client_title, counter.moved_to(used + 1))


def current(tx: Transaction, identity: bytes, client_title: bytes) -> Counter | None:
    """Read where a counter stands, or nothing if none of its values was ever reserved."""
    row = _row(tx, identity, client_title)
    return None if row is None else _counter(row, 1)


def accept_received(tx: Transaction, identity: bytes, server_title: bytes, value: int, last: int | None = None) -> None:
    """Take note of the counter of an answer whose tag was verified; the same or a lower one is never accepted again.

    Of several answers it is the first one's, and `last` that of the last. Raises IntegrityError for a value below the
    lowest acceptable: the answer is a recording.
    """
    after = (value if last is None else last) + 1
    if not 0 <= value < after <= LAST + 1:
        raise IntegrityError("an invocation counter has 4 octets")
    row = RECEIVE_ROWS.fetch(tx, identity=identity, server_title=server_title)
    refuse_repeated(server_title, value, 0 if row is None else row["lowest"])
    if row is None:
        _check_names(identity, server_title)
        RECEIVE_ROWS.insert(tx, {"identity": identity, "server_title": server_title, "lowest": after})
    else:
        RECEIVE_ROWS.replace(tx, row, {"lowest": after})


def refuse_repeated(server_title: bytes, value: int, lowest: int) -> None:
    """Raise IntegrityError for the counter of an answer that is below the lowest acceptable one."""
    if value < lowest:
        raise RepeatedCounterError(
            f"an answer of {server_title.hex().upper()} carries counter {value}, below {lowest}",
            hint="it was recorded earlier, or the meter's counter went back",
        )


def lowest_received(tx: Transaction, identity: bytes, server_title: bytes) -> int:
    """Read the lowest counter that an answer may still carry."""
    row = RECEIVE_ROWS.fetch(tx, identity=identity, server_title=server_title)
    return 0 if row is None else int(row["lowest"])


def recover(tx: Transaction, jump: int, highest: int) -> tuple[int, list[bytes]]:
    """Raise every counter above what it can have been in a time that the store has lost; how many, and which are spent.

    No counter went further than `jump` in that time or reached more than `highest`. Spent are those whose values may
    all have been used: their keys must be renewed.
    """
    raised, spent = 0, []
    for row in _every_row(tx):
        ROWS.verify(tx, row)
        counter = _counter(row, 1)
        top = max(counter.next, counter.trial_next)
        value = min(top + jump, max(top, highest), LAST + 1)
        if value > counter.next:
            _write(tx, row, row["identity"], row["client_title"], Counter(value))
            raised += 1
        if value > LAST:
            spent.append(row["identity"])
    return raised, spent


def _every_row(tx: Transaction) -> Iterator[StoredRow]:
    """Read all rows in pages, so that each can be changed before the next is read."""
    key = tuple_(*(counters.c[name] for name in ROWS.key))
    statement = ROWS.everything().limit(PAGE)
    page = tx.all(statement)
    while page:
        yield from page
        page = tx.all(statement.where(key > tuple_(*(page[-1][name] for name in ROWS.key))))


def _begin(tx: Transaction, begin_at: int) -> int:
    """Say where a counter without a row begins: after a recovery, above what a row that was lost can have reached."""
    offset = tx.before.counter_offset if tx.before else 0
    return min(begin_at + offset, LAST)


def _row(tx: Transaction, identity: bytes, client_title: bytes) -> StoredRow | None:
    return ROWS.fetch(tx, identity=identity, client_title=client_title)


def _counter(row: StoredRow | None, begin_at: int) -> Counter:
    if row is None:
        return Counter(begin_at)
    return Counter(row["next"], row["trial_low"] or 0, row["trial_next"] or 0)


def _write(tx: Transaction, row: StoredRow | None, identity: bytes, client_title: bytes, counter: Counter) -> None:
    values: dict[str, Value] = {
        "next": counter.next,
        "trial_low": counter.trial_low or None,
        "trial_next": counter.trial_next or None,
    }
    reached = max(counter.next, counter.trial_next)
    before = _counter(row, 1)
    tx.counter_moved((identity, client_title), reached - max(before.next, before.trial_next), reached)
    if row is None:
        _check_names(identity, client_title)
        ROWS.insert(tx, {"identity": identity, "client_title": client_title} | values)
    else:
        ROWS.replace(tx, row, values)


def _block(start: int, count: int) -> range:
    if count < 1 or start < 1:
        raise ValueError("a block begins at 1 or later and has one value or more")
    if start + count - 1 > LAST:
        raise RefusedError("the invocation counter of this key is used up", hint="renew the meter's keys")
    return range(start, start + count)


def _check_jump(counter: Counter, value: int, max_jump: int) -> None:
    if not 0 <= value <= LAST or value > counter.next + max_jump:
        raise RefusedError(
            f"the meter names counter {value}, more than {max_jump} above {counter.next}",
            hint="see max_counter_jump, and whether this is the meter",
        )


def _check_names(identity: bytes, title: bytes) -> None:
    if len(identity) != IDENTITY_OCTETS or len(title) != TITLE_OCTETS:
        raise ValueError("an identity has 16 octets and a system title 8")
