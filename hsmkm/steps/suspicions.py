"""Suspicious answers of meters are refused where they are met; each refusal becomes an audit record, to be counted.

The record's action is the kind behind `refused: `, its subject the meter. Counts are of the audit log alone, which
nobody can change unnoticed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from hsmkm.errors import HsmkmError
from hsmkm.steps.party import Party, utc_now
from hsmkm.store import audit
from hsmkm.store.audit import REFUSED, Tally
from hsmkm.store.meters import Meter
from hsmkm.store.store import Transaction

DAY = timedelta(days=1)


@contextmanager
def refusals_recorded(party: Party, meter: Meter) -> Iterator[None]:
    """Record what is refused as suspicious within, and let it go on as it was raised."""
    try:
        yield
    except HsmkmError as error:
        if error.suspicion:
            with party.store.begin(f"{REFUSED}{error.suspicion}", meter.title, {"reason": error.message}):
                pass
        raise


def of_meter(tx: Transaction, title: str) -> list[Tally]:
    """Count what was refused of one meter (its system title in hex), by kind."""
    return [_without_prefix(item) for item in audit.tally(tx, REFUSED, subject=title)]


def of_last_day(party: Party) -> dict[str, int]:
    """Count what was refused of all meters within 24 hours, by kind."""
    with party.store.read() as tx:
        found = audit.tally(tx, REFUSED, since=utc_now() - DAY)
    return {_without_prefix(item).action: item.count for item in found}


def _without_prefix(item: Tally) -> Tally:
    return Tally(item.action.removeprefix(REFUSED), item.count, item.last_time, item.last_sequence)


def counted_after(party: Party, sequence: int) -> tuple[int, dict[str, int]]:
    """Count by kind what was refused after an audit record, and give the newest record that was looked at."""
    with party.store.read() as tx:
        newest = audit.newest_sequence(tx)
        found = audit.tally(tx, REFUSED, after=sequence)
    return newest, {_without_prefix(item).action: item.count for item in found}


@dataclass(slots=True)
class Count:
    """A running count over the audit log, each record of which is looked at once."""

    counts: Counter[str] = field(default_factory=Counter)
    sequence: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, sequence: int, further: Mapping[str, int]) -> dict[str, int]:
        """Take what `counted_after` gave and give the whole."""
        self.sequence = sequence
        self.counts.update(further)
        return dict(self.counts)
