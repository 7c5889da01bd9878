"""The audit chain: each record holds the hash of the one before, so that the first that was altered is found.

Records are appended by `Store.begin` alone. A record cut off the end leaves a chain that fits: the state of the store
shows that, which an anchor outside the database holds, and checkpoints do, signed in the token and kept elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter

from sqlalchemy import func, select

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store import pages
from hsmkm.store.canonical import canonical_json
from hsmkm.store.problem import Problem
from hsmkm.store.schema import REFUSED_ROWS
from hsmkm.store.schema import audit as table
from hsmkm.store.state import FIRST_HASH
from hsmkm.store.store import Store, StoredRow, Transaction, record_hash

PAGE = 100
REFUSED = "refused: "
"""How the action of a record begins that tells of a meter's suspicious answer; there is an index of those."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what to what, when (RFC 3339, UTC), with the digest of what changed."""

    sequence: int
    epoch: int
    time: str
    actor: str
    action: str
    subject: str
    detail: Mapping[str, object]
    effect: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Tally:
    """How many records of one action there are, and when (RFC 3339, UTC) and where the last one was written."""

    action: str
    count: int
    last_time: str
    last_sequence: int


def verify(tx: Transaction) -> list[Problem]:
    """Follow the chain and name the first record that does not fit, or that the newest is missing, or nothing."""
    previous, sequence = FIRST_HASH, 0
    for sequence, row in enumerate(tx.stream(select(table).order_by(table.c.sequence)), 1):
        text = _fault(row, sequence, previous)
        if text:
            return [Problem("audit", str(row["sequence"]), text)]
        previous = row["hash"]
    try:
        state = tx.state()
    except IntegrityError as error:
        return [Problem("store_state", "1", error.message)]
    if state is not None and (state.audit_sequence, state.audit_hash) != (sequence, previous):
        return [Problem("audit", str(sequence), f"it is not the newest record, which is {state.audit_sequence}")]
    return []


def log(tx: Transaction, *, after: int = 0, limit: int = PAGE, subject: str | None = None) -> list[AuditRecord]:
    """List records behind the sequence `after`, oldest first."""
    statement = select(table).where(table.c.sequence > after).order_by(table.c.sequence).limit(limit)
    if subject is not None:
        statement = statement.where(table.c.subject == subject)
    return [_record(row) for row in tx.all(statement)]


def every(store: Store, *, after: int = 0, subject: str | None = None) -> Iterator[AuditRecord]:
    """Read every record behind a sequence, as `log` and without holding them."""

    def page(tx: Transaction, behind: int) -> list[AuditRecord]:
        return log(tx, after=behind, limit=pages.PAGE, subject=subject)

    return pages.every(store, page, after, attrgetter("sequence"))


def of_action(tx: Transaction, action: str) -> list[AuditRecord]:
    """List all records of one action, oldest first."""
    return [_record(row) for row in tx.all(select(table).where(table.c.action == action).order_by(table.c.sequence))]


def newest_of(tx: Transaction, actions: Sequence[str], subjects: Sequence[str]) -> dict[str, AuditRecord]:
    """Find the newest record of some actions for each of many subjects, those that have one."""
    found: dict[str, AuditRecord] = {}
    for start in range(0, len(subjects), pages.PAGE):
        wanted = table.c.action.in_(actions), table.c.subject.in_(subjects[start : start + pages.PAGE])
        newest = select(func.max(table.c.sequence)).where(*wanted).group_by(table.c.subject)
        found |= {row["subject"]: _record(row) for row in tx.all(select(table).where(table.c.sequence.in_(newest)))}
    return found


def tally(
    tx: Transaction, prefix: str, *, subject: str | None = None, after: int = 0, since: datetime | None = None
) -> list[Tally]:
    """Count the records whose action begins so, by action; of one subject, behind a sequence, from a moment on."""
    columns = table.c.action, func.count(), func.max(table.c.time), func.max(table.c.sequence)
    statement = select(*(column.label(name) for column, name in zip(columns, Tally.__dataclass_fields__, strict=True)))
    statement = statement.where(table.c.action.startswith(prefix, autoescape=True), table.c.sequence > after)
    if prefix == REFUSED:
        statement = statement.where(REFUSED_ROWS)  # said in the very words of the index
    if subject is not None:
        statement = statement.where(table.c.subject == subject)
    if since is not None:
        statement = statement.where(table.c.time >= since.astimezone(UTC).isoformat().replace("+00:00", "Z"))
    return [Tally(**row) for row in tx.all(statement.group_by(table.c.action).order_by(table.c.action))]


def newest_sequence(tx: Transaction) -> int:
    """Give the sequence of the newest record; 0 where there is none."""
    row = tx.one(select(table.c.sequence).order_by(table.c.sequence.desc()).limit(1))
    return 0 if row is None else int(row["sequence"])


def checkpoint_content(tx: Transaction) -> bytes:
    """Return what a checkpoint signs: the newest record's sequence, hash, epoch and time, as canonical JSON.

    Raises RefusedError if there is no record yet.
    """
    row = tx.one(select(table).order_by(table.c.sequence.desc()).limit(1))
    if row is None:
        raise RefusedError("there is no audit record yet")
    content = {"sequence": row["sequence"], "hash": row["hash"].hex(), "epoch": row["epoch"], "time": row["time"]}
    return canonical_json(content).encode()


def matches_checkpoint(tx: Transaction, content: bytes) -> Iterator[Problem]:
    """Name what does not fit a checkpoint whose signature was verified: a chain cut short, or another one."""
    said = json.loads(content)
    row = tx.one(select(table).where(table.c.sequence == said["sequence"]))
    if row is None:
        yield Problem("audit", str(said["sequence"]), "the record of a checkpoint is missing: the chain was cut short")
    elif row["hash"].hex() != said["hash"]:
        yield Problem("audit", str(said["sequence"]), "the record is not the one of the checkpoint")


def _fault(row: StoredRow, sequence: int, previous: bytes) -> str:
    if row["sequence"] != sequence:
        return f"record {sequence} is missing"
    if row["previous"] != previous:
        return "it does not follow the record before it"
    try:
        fits = row["hash"] == record_hash(row)
    except IntegrityError:
        fits = False
    return "" if fits else "it does not fit its hash"


def _record(row: StoredRow) -> AuditRecord:
    values = {name: row[name] for name in AuditRecord.__dataclass_fields__}
    return AuditRecord(**values | {"detail": json.loads(row["detail"])})
