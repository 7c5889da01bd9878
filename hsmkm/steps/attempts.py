"""Attempts on a meter in doubt: each is durable before it is made, and they are limited for each meter and day."""

from __future__ import annotations

from datetime import datetime, timedelta

from hsmkm.steps.party import utc_now
from hsmkm.steps.renew import InDoubtError, Work
from hsmkm.store import renewals
from hsmkm.store.store import Transaction

DAY = timedelta(days=1)


def spend(work: Work, what: str) -> None:
    """Count an attempt durably before it is made; PartlyDoneError at the day's limit."""
    limit = work.party.settings.policy.attempts_per_day
    work.refused_in_a_row += 1
    if work.refused_in_a_row > work.speaking.model.authentication.failed_limit:
        raise in_doubt(work, f"a meter of model {work.speaking.model.name} bears no more attempts in a row")
    title, now = work.speaking.meter.system_title, utc_now()
    with work.party.store.begin("resolve-attempt", work.title, {"try": what}) as tx:
        renewals.attempt(tx, work.renewal.id, {"try": what, "at": now.isoformat()})
        if _attempts_since(tx, title, now - DAY) > limit:
            raise InDoubtError(
                f"meter {work.title} was tried {limit} times in 24 hours and is still in doubt",
                hint="wait, or raise policy.attempts_per_day if the meter bears it",
            )


def note_refusal(work: Work, what: str, reason: str) -> None:
    """Record in the audit log that an attempt led to nothing, and why."""
    with work.party.store.begin("resolve-refused", work.title, {"try": what, "reason": reason}):
        pass


def in_doubt(work: Work, reason: str) -> InDoubtError:
    """Say that the meter did not tell what it holds."""
    return InDoubtError(
        f"the keys of meter {work.title} stay in doubt: {reason}",
        hint=f"see what was tried with: hsmkm meter show {work.title}; then hsmkm resolve {work.title} again",
    )


def _attempts_since(tx: Transaction, title: bytes, since: datetime) -> int:
    return sum(
        datetime.fromisoformat(str(note["at"])) >= since
        for renewal in renewals.listing(tx, title)
        for note in renewal.tried
    )
