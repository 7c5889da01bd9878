"""Certificates: our own, of parties and authorities, and the record of what our authorities issue.

An issuance is recorded before it is signed, so that no certificate exists that the record does not know; its serial
number is unique for each issuer. When it is signed, the certificate is stored and the issuance completed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from operator import attrgetter

from sqlalchemy import select

from hsmkm.errors import RefusedError
from hsmkm.store import pages
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.canonical import Value
from hsmkm.store.schema import certificates as table
from hsmkm.store.schema import issuances, revocation_lists
from hsmkm.store.store import Store, StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds


class Source(StrEnum):
    """How a certificate came here."""

    OWN = "own"
    PARTY = "party"
    ISSUED = "issued"
    ANCHOR = "anchor"
    INTERMEDIATE = "intermediate"
    METER = "meter"


class CertificateState(StrEnum):
    """Whether a certificate is in force as far as we said; its dates and CRLs speak for themselves."""

    PLANNED = "planned"
    VALID = "valid"
    REPLACED = "replaced"
    REVOKED = "revoked"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A certificate in DER with what is asked of it; `fingerprint` is its SHA-256, `serial` its number in octets."""

    fingerprint: bytes
    der: bytes
    profile: str
    subject: str
    issuer: str
    serial: bytes
    not_before: datetime
    not_after: datetime
    owner: str
    source: Source
    state: CertificateState = CertificateState.VALID


@dataclass(frozen=True, slots=True)
class Issuance:
    """A certificate that an authority of ours issues; `tbs_digest` is the SHA-256 of what is to be signed."""

    issuer: str
    serial: bytes
    profile: str
    subject: str
    tbs_digest: bytes
    not_before: datetime
    not_after: datetime
    state: CertificateState = CertificateState.PLANNED
    fingerprint: bytes | None = None
    revoked: datetime | None = None
    reason: str | None = None


COLUMNS = (
    "fingerprint",
    "der",
    "profile",
    "subject",
    "issuer",
    "serial",
    "not_before",
    "not_after",
    "owner",
    "state",
    "source",
)
ISSUANCE_COLUMNS = (
    "issuer",
    "serial",
    "profile",
    "subject",
    "tbs_digest",
    "not_before",
    "not_after",
    "state",
    "fingerprint",
    "revoked",
    "reason",
)
PAGE = 100
ROWS = AuthenticatedTable("hsmkm certificate/1", table, ("fingerprint",), COLUMNS)
ISSUANCES = AuthenticatedTable("hsmkm issuance/1", issuances, ("issuer", "serial"), ISSUANCE_COLUMNS)
LISTS = AuthenticatedTable(
    "hsmkm revocation list/1",
    revocation_lists,
    ("issuer", "number"),
    ("issuer", "number", "this_update", "next_update", "digest"),
)


def add(tx: Transaction, certificate: CertificateRecord) -> None:
    """Store a certificate; raises RefusedError if it is there already."""
    ROWS.insert(tx, _plain(certificate, COLUMNS))


def get(tx: Transaction, fingerprint: bytes) -> CertificateRecord | None:
    """Find a certificate; raises IntegrityError if its row was altered."""
    row = ROWS.fetch(tx, fingerprint=fingerprint)
    return None if row is None else _certificate(row)


def listing(
    tx: Transaction,
    *,
    owner: str | None = None,
    profile: str | None = None,
    source: Source | None = None,
    expires_before: datetime | None = None,
) -> list[CertificateRecord]:
    """List certificates by the end of their validity, the one that lasts longest first."""
    statement = select(table).order_by(table.c.not_after.desc(), table.c.fingerprint)
    wanted = {"owner": owner, "profile": profile, "source": source and source.value}
    for name, value in wanted.items():
        if value is not None:
            statement = statement.where(table.c[name] == value)
    if expires_before is not None:
        statement = statement.where(table.c.not_after < to_seconds(expires_before))
    return [_certificate(row) for row in ROWS.rows(tx, statement)]


def every(store: Store) -> Iterator[CertificateRecord]:
    """Read every certificate as `listing` orders them, in pages."""

    def page(tx: Transaction, behind: tuple[datetime, bytes] | None) -> list[CertificateRecord]:
        c = table.c
        statement = select(table).order_by(c.not_after.desc(), c.fingerprint).limit(PAGE)
        if behind is not None:
            end, fingerprint = to_seconds(behind[0]), behind[1]
            statement = statement.where(c.not_after <= end, (c.not_after < end) | (c.fingerprint > fingerprint))
        return [_certificate(row) for row in ROWS.rows(tx, statement)]

    return pages.every(store, page, None, attrgetter("not_after", "fingerprint"))


def by_end(tx: Transaction) -> Iterator[CertificateRecord]:
    """Read every certificate without holding them, the one that ends first before all others."""
    for row in tx.stream(select(table).order_by(table.c.not_after, table.c.fingerprint.desc())):
        ROWS.verify(tx, row)
        yield _certificate(row)


def set_state(tx: Transaction, fingerprint: bytes, state: CertificateState) -> None:
    """Say whether a certificate is in force; raises RefusedError if there is none."""
    row = ROWS.fetch(tx, fingerprint=fingerprint)
    if row is None:
        raise RefusedError(f"there is no certificate {fingerprint.hex()}")
    ROWS.replace(tx, row, {"state": state.value})


def record_issued(tx: Transaction, *planned: Issuance) -> list[StoredRow]:
    """Record what is about to be signed; raises RefusedError if an issuer used one of the serial numbers before."""
    return ISSUANCES.insert_many(tx, [_plain(one, ISSUANCE_COLUMNS) for one in planned])


def complete_issued(tx: Transaction, *signed: CertificateRecord) -> None:
    """Store certificates that were signed and complete their issuances; raises RefusedError unless each was planned."""
    by_number = {(one.issuer, one.serial): one for one in signed}
    rows: list[StoredRow] = []
    for issuer in {one.issuer for one in signed}:
        serials = [one.serial for one in signed if one.issuer == issuer]
        rows += ISSUANCES.fetch_many(tx, "serial", serials, issuer=issuer)
    for missing in by_number.keys() - {(row["issuer"], row["serial"]) for row in rows}:
        raise _never_recorded(*missing)
    for row in rows:
        if row["state"] != CertificateState.PLANNED:
            raise RefusedError(f"serial number {row['serial'].hex()} of {row['issuer']} was issued before")
    _complete(tx, rows, by_number)


def complete_recorded(tx: Transaction, recorded: Sequence[StoredRow], signed: Sequence[CertificateRecord]) -> None:
    """Do the same for what one issuer signed of what `record_issued` gave; RefusedError where it was changed since."""
    if not ISSUANCES.unchanged(tx, recorded):
        raise RefusedError("what was recorded before it was signed was changed meanwhile", hint="issue it again")
    _complete(tx, recorded, {(one.issuer, one.serial): one for one in signed})


def _complete(
    tx: Transaction, rows: Sequence[StoredRow], by_number: Mapping[tuple[str, bytes], CertificateRecord]
) -> None:
    ROWS.insert_many(tx, [_plain(one, COLUMNS) for one in by_number.values()])
    valid = CertificateState.VALID.value
    made = [by_number[row["issuer"], row["serial"]].fingerprint for row in rows]
    changes: list[dict[str, Value]] = [{"state": valid, "fingerprint": one} for one in made]
    ISSUANCES.replace_many(tx, zip(rows, changes, strict=True))


def issuance(tx: Transaction, issuer: str, serial: bytes) -> Issuance | None:
    """Find what an authority recorded under a serial number."""
    row = ISSUANCES.fetch(tx, issuer=issuer, serial=serial)
    return None if row is None else _issuance(row)


def revoke(tx: Transaction, issuer: str, serial: bytes, when: datetime, reason: str) -> None:
    """Revoke what was issued, for good; raises RefusedError if it was never issued or is revoked already."""
    row = _issuance_row(tx, issuer, serial)
    if row["state"] == CertificateState.REVOKED:
        raise RefusedError(f"serial number {serial.hex()} of {issuer} is revoked already")
    changes: dict[str, Value] = {"state": CertificateState.REVOKED.value, "reason": reason}
    changes["revoked"] = to_seconds(when)
    ISSUANCES.replace(tx, row, changes)
    if row["fingerprint"] is not None:
        set_state(tx, row["fingerprint"], CertificateState.REVOKED)


def revoked(tx: Transaction, issuer: str) -> list[Issuance]:
    """List what an authority revoked, for its CRL."""
    statement = ISSUANCES.everything().where(
        issuances.c.issuer == issuer, issuances.c.state == CertificateState.REVOKED.value
    )
    return [_issuance(row) for row in ISSUANCES.rows(tx, statement)]


def next_crl_number(tx: Transaction, issuer: str) -> int:
    """Return the number of the next CRL of an issuer (RFC 5280, 5.2.3: it rises).

    Raises IntegrityError if the row of any before was altered.
    """
    rows = LISTS.rows(tx, LISTS.everything().where(revocation_lists.c.issuer == issuer))
    last = max((row["number"] for row in rows), default=0)
    state = tx.state()
    return max(last, state.sequence_floor if state else 0) + 1


def record_crl(tx: Transaction, issuer: str, number: int, dates: tuple[datetime, datetime], digest: bytes) -> None:
    """Record a CRL with (this update, next update) and its SHA-256; raises RefusedError if the number does not rise."""
    if number < next_crl_number(tx, issuer):
        raise RefusedError(f"crl number {number} of {issuer} does not rise")
    this_update, next_update = map(to_seconds, dates)
    values: dict[str, Value] = {"issuer": issuer, "number": number, "digest": digest}
    LISTS.insert(tx, values | {"this_update": this_update, "next_update": next_update})


def _issuance_row(tx: Transaction, issuer: str, serial: bytes) -> StoredRow:
    row = ISSUANCES.fetch(tx, issuer=issuer, serial=serial)
    if row is None:
        raise _never_recorded(issuer, serial)
    return row


def _never_recorded(issuer: str, serial: bytes) -> RefusedError:
    return RefusedError(f"{issuer} never recorded the serial number {serial.hex()}")


def _plain(record: CertificateRecord | Issuance, columns: tuple[str, ...]) -> dict[str, Value]:
    values = {name: getattr(record, name) for name in columns}
    for name, value in values.items():
        if isinstance(value, datetime):
            values[name] = to_seconds(value)
        elif isinstance(value, StrEnum):
            values[name] = value.value
    return values


def _certificate(row: StoredRow) -> CertificateRecord:
    values = {name: row[name] for name in COLUMNS} | _dates(row)
    values |= {"source": Source(row["source"]), "state": CertificateState(row["state"])}
    return CertificateRecord(**values)


def _issuance(row: StoredRow) -> Issuance:
    values = {name: row[name] for name in ISSUANCE_COLUMNS} | _dates(row)
    values |= {"state": CertificateState(row["state"]), "revoked": from_seconds(row["revoked"])}
    return Issuance(**values)


def _dates(row: StoredRow) -> StoredRow:
    return {name: from_seconds(row[name]) for name in ("not_before", "not_after")}
