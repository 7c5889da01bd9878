"""Transaction-ids of general-ciphering and general-signing: for one recipient they only rise.

A recipient takes each number once, and a statically agreed key is that of its number. Numbers are durable before they
are used, and never below the microseconds since 1970 of our clock: so they go on above every earlier one after a clock
that went back, which the row remembers, and after a database that went back, which the clock outruns.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hsmkm.errors import RefusedError
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.key_set import TITLE_OCTETS
from hsmkm.store.schema import transactions
from hsmkm.store.store import Transaction

LAST = 2**63 - 1
"""The highest number: what the database holds, and less than the 8 octets of a transaction-id here."""

ROWS = AuthenticatedTable("hsmkm transactions/1", transactions, ("recipient",), ("recipient", "next"))
_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)


def reserve(tx: Transaction, recipient: bytes, count: int) -> range:
    """Reserve `count` numbers for a recipient, which may be used once the transaction is committed.

    Raises RefusedError if the numbers are used up, IntegrityError if the row was altered.
    """
    if len(recipient) != TITLE_OCTETS or count < 1:
        raise ValueError("a system title has 8 octets, and a block one number or more")
    row = ROWS.fetch(tx, recipient=recipient)
    start = max((tx.now - _BEGIN) // timedelta(microseconds=1), row["next"] if row else 0)
    if start + count > LAST:
        raise RefusedError("the transaction numbers of this recipient are used up", hint="set the clock right")
    if row is None:
        ROWS.insert(tx, {"recipient": recipient, "next": start + count})
    else:
        ROWS.replace(tx, row, {"next": start + count})
    return range(start, start + count)
