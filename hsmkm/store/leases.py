"""One lease for each meter, fenced: who holds the newest may talk to it; a late holder is found out by its fence.

The fence rises with every lease that is given. A transaction that reserves counter values compares it (`check`), so
that a process which slept past its lease reserves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from hsmkm.errors import RefusedError
from hsmkm.store.canonical import Value
from hsmkm.store.schema import leases as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to talk to a meter, as long as no lease with a higher fence was given."""

    system_title: bytes
    fence: int


class HeldError(RefusedError):
    """Another process speaks with the meter now."""


def _still_there(_holder: str) -> bool:
    return False


def acquire(
    tx: Transaction,
    system_title: bytes,
    holder: str,
    seconds: int,
    now: datetime,
    is_gone: Callable[[str], bool] = _still_there,
) -> Lease:
    """Take the lease of a meter; raises HeldError while another one lasts whose holder is not known to be gone."""
    row = _row(tx, system_title)
    expires = to_seconds(now + timedelta(seconds=seconds))
    if row is None:
        tx.insert(table, {"system_title": system_title, "holder": holder, "fence": 1, "expires": expires})
        return Lease(system_title, 1)
    if row["holder"] is not None and row["expires"] > to_seconds(now) and not is_gone(row["holder"]):
        until = from_seconds(row["expires"]).isoformat()
        raise HeldError(f"meter {_name(system_title)} is held by {row['holder']}", hint=f"its lease ends at {until}")
    fence = row["fence"] + 1
    tx.update(table, {"system_title": system_title}, {"holder": holder, "fence": fence, "expires": expires})
    return Lease(system_title, fence)


def renew(tx: Transaction, lease: Lease, seconds: int, now: datetime) -> None:
    """Keep a lease for some seconds from now; raises RefusedError if it was lost."""
    check(tx, lease)
    expires = to_seconds(now + timedelta(seconds=seconds))
    tx.update(table, {"system_title": lease.system_title, "fence": lease.fence}, {"expires": expires})


def release(tx: Transaction, lease: Lease) -> None:
    """Give a lease back; one that was lost meanwhile stays with its new holder."""
    key: dict[str, Value] = {"system_title": lease.system_title, "fence": lease.fence}
    tx.update(table, key, {"holder": None})


def check(tx: Transaction, lease: Lease) -> None:
    """Raise RefusedError unless this is the newest lease of its meter and was not given back."""
    row = _row(tx, lease.system_title)
    if row is None or row["fence"] != lease.fence or row["holder"] is None:
        raise RefusedError(f"the lease of meter {_name(lease.system_title)} was lost", hint="begin again")


def _row(tx: Transaction, system_title: bytes) -> StoredRow | None:
    return tx.at(table, {"system_title": system_title})


def _name(system_title: bytes) -> str:
    return system_title.hex().upper()
