"""Approvals: what a second officer's signature allows to be done, once, and what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from hsmkm.errors import RefusedError
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.canonical import Value, canonical_json
from hsmkm.store.schema import approvals as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds

OPEN, USED = "open", "used"
DIGEST_OCTETS = 32
COLUMNS = ("id", "action", "subject", "digest", "requested_by", "decisions", "state", "created", "expires")
ROWS = AuthenticatedTable("hsmkm approval/1", table, ("id",), COLUMNS)


@dataclass(frozen=True, slots=True)
class Decision:
    """One officer's signature: the certificate and the signed file by their SHA-256 (32 octets each)."""

    officer: str
    certificate: bytes
    file: bytes
    signed: str


@dataclass(frozen=True, slots=True)
class Approval:
    """An approval; `digest` is the SHA-256 of the canonical form of exactly what may be done (32 octets)."""

    id: str
    action: str
    subject: str
    digest: bytes
    requested_by: str
    created: datetime
    expires: datetime
    decisions: tuple[Decision, ...]
    state: str = OPEN


def put(tx: Transaction, approval: Approval) -> None:
    """Record an approval, or what became of it; raises RefusedError where it was used before: it stays as it is."""
    values = _values(approval)
    row = ROWS.fetch(tx, id=approval.id)
    if row is None:
        ROWS.insert(tx, values)
    elif row["state"] != OPEN:
        raise RefusedError(f"approval {approval.id} was used before")
    else:
        ROWS.replace(tx, row, values)


def get(tx: Transaction, approval_id: str) -> Approval | None:
    """Find an approval by its id; raises IntegrityError if its row was altered."""
    row = ROWS.fetch(tx, id=approval_id)
    return None if row is None else _approval(row)


def listing(tx: Transaction) -> list[Approval]:
    """List approvals, the newest first."""
    statement = ROWS.everything().order_by(None).order_by(table.c.created.desc(), table.c.id)
    return [_approval(row) for row in ROWS.rows(tx, statement)]


def matching(tx: Transaction, action: str, subject: str, digest: bytes) -> list[Approval]:
    """List the approvals of exactly this, the newest first."""
    wanted = {"action": action, "subject": subject, "digest": digest}
    return [one for one in listing(tx) if {name: getattr(one, name) for name in wanted} == wanted]


def _values(approval: Approval) -> dict[str, Value]:
    if len(approval.digest) != DIGEST_OCTETS:
        raise RefusedError("the digest of an approval is not of SHA-256")
    decisions = [
        {"officer": one.officer, "certificate": one.certificate.hex(), "file": one.file.hex(), "signed": one.signed}
        for one in approval.decisions
    ]
    return {
        "id": approval.id,
        "action": approval.action,
        "subject": approval.subject,
        "digest": approval.digest,
        "requested_by": approval.requested_by,
        "decisions": canonical_json({"decisions": decisions}),
        "state": approval.state,
        "created": to_seconds(approval.created),
        "expires": to_seconds(approval.expires),
    }


def _approval(row: StoredRow) -> Approval:
    decisions = tuple(
        Decision(one["officer"], bytes.fromhex(one["certificate"]), bytes.fromhex(one["file"]), one["signed"])
        for one in json.loads(row["decisions"])["decisions"]
    )
    names = ("id", "action", "subject", "digest", "requested_by", "state")
    values = {name: row[name] for name in names} | {name: from_seconds(row[name]) for name in ("created", "expires")}
    return Approval(**values, decisions=decisions)
