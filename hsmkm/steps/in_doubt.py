"""Which meters wait for `resolve`, for an operator: since when, what was tried on each, what came of it, what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hsmkm.steps.agree import may_be_locked
from hsmkm.steps.attempts import DAY
from hsmkm.steps.distribute import NOWHERE, owed_activations, owed_at
from hsmkm.store import audit, renewals
from hsmkm.store.audit import AuditRecord
from hsmkm.store.intents import Intent
from hsmkm.store.renewals import Renewal, RenewalState
from hsmkm.store.store import Transaction

ANSWERS = ("renewal-unknown", "resolve-refused", "way-back-unknown")
"""Actions of audit records whose detail says why a meter is still in doubt."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """One association of a meter whose keys are in doubt, or whose concentrator was not told of them.

    `place` is its Security Setup and client, where the record has them. `tried` are the keys that were tried and how
    often, `answer` why the last attempt led to nothing.
    """

    meter: str
    place: tuple[int, int] | None
    state: str
    stage: str
    since: datetime
    attempts: int
    tried: str
    answer: str
    hint: str


def in_doubt(tx: Transaction, attempts_per_day: int, now: datetime, limit: int | None = None) -> list[Doubt]:
    """List what did not end, the oldest first, and at most so many; `attempts_per_day` is the policy's."""
    open_ones: list[Renewal | Intent] = [*renewals.unfinished(tx), *owed_activations(tx)]
    found = sorted(open_ones, key=_since)[:limit]
    answers = audit.newest_of(tx, ANSWERS, sorted({_title(item) for item in found}))
    return [
        _of_activation(item) if isinstance(item, Intent) else _of_renewal(tx, item, attempts_per_day, now, answers)
        for item in found
    ]


def _since(item: Renewal | Intent) -> datetime:
    return item.opened if isinstance(item, Intent) else item.created


def _title(item: Renewal | Intent) -> str:
    return item.system_title.hex().upper()


def _of_activation(intent: Intent) -> Doubt:
    title = _title(intent)
    place = owed_at(intent, NOWHERE)
    hint = f"hsmkm resolve {title}, once its concentrator can be reached"
    known = None if place == NOWHERE else place
    return Doubt(title, known, "concentrator not told", "activation", intent.opened, 0, "", "", hint)


def _of_renewal(
    tx: Transaction, renewal: Renewal, limit: int, now: datetime, answers: Mapping[str, AuditRecord]
) -> Doubt:
    title = _title(renewal)
    counts = Counter(str(note["try"]) for note in renewal.tried)
    tried = "; ".join(f"{what} ({count}x)" for what, count in counts.items())
    hint = _hint(tx, renewal, limit, now)
    answer = str(answers[title].detail.get("reason", "")) if title in answers else ""
    return Doubt(
        title, renewal.place, renewal.state, renewal.stage, renewal.created, renewal.attempts, tried, answer, hint
    )


def _hint(tx: Transaction, renewal: Renewal, limit: int, now: datetime) -> str:
    title = _title(renewal)
    of_meter = [note for item in renewals.listing(tx, renewal.system_title) for note in item.tried]
    recent = sorted(at for note in of_meter if (at := datetime.fromisoformat(str(note["at"]))) >= now - DAY)
    if len(recent) >= limit:
        until = (recent[-limit] + DAY).isoformat()
        wait = f"hsmkm resolve {title} after {until}, or raise policy.attempts_per_day"
        return f"tried {len(recent)} times in 24 hours: {wait}"
    if renewal.state is RenewalState.PREPARED:
        return f"nothing was sent: hsmkm resolve {title}"
    if may_be_locked(renewal):
        return f"hsmkm resolve {title}, which takes the way back if need be"
    return f"hsmkm resolve {title}"
