"""Whether this home gave its work to another one: from then on it changes nothing, and so speaks to nobody.

Every message under a key takes a counter out of the store, and every exchange leaves a record in it. So a store that
refuses all changes keeps two homes from using one key under one system title.
"""

from __future__ import annotations

from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.schema import retirement as table
from hsmkm.store.store import Transaction
from hsmkm.store.times import to_seconds

ROWS = AuthenticatedTable("hsmkm retirement/1", table, ("number",), ("number", "recipient", "since"))
_ONLY = 1


def retire(tx: Transaction, recipient: bytes) -> None:
    """Retire this home in favour of the holder of a key-agreement certificate (its SHA-256, 32 octets), for good."""
    ROWS.insert(tx, {"number": _ONLY, "recipient": recipient, "since": to_seconds(tx.now)})


def recipient(tx: Transaction) -> bytes | None:
    """Tell for whom this home was retired; None while it works. Raises IntegrityError if the row was altered."""
    row = ROWS.fetch(tx, number=_ONLY)
    return None if row is None else bytes(row["recipient"])
