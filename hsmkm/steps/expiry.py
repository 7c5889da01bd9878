"""The expiry watch: what has ended, what ends soon, and what is due for renewal, at two thirds of its life."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from hsmkm.pki.certificates import parse_certificate, public_key
from hsmkm.pki.revocation import parse_crl
from hsmkm.store import certificates
from hsmkm.store.certificates import CertificateRecord, CertificateState
from hsmkm.store.store import Transaction


@dataclass(frozen=True, slots=True)
class Due:
    """A certificate or revocation list that someone has to do something about; `state` says why."""

    owner: str
    profile: str
    source: str
    state: str
    not_after: datetime
    serial: str = ""


def renewal_date(not_before: datetime, not_after: datetime) -> datetime:
    """Say from when on a certificate is due for renewal: two thirds of its life."""
    return not_before + (not_after - not_before) * 2 / 3


def due_certificates(tx: Transaction, now: datetime, days: int) -> Iterator[Due]:
    """Yield what is in force and has ended, ends within so many days, or is due, the most urgent first.

    One that was renewed is not named: a later one of the same owner, profile and curve took its place.
    """
    for record in certificates.by_end(tx):
        state = due_state(record.not_before, record.not_after, now, days)
        if state and record.state is CertificateState.VALID and not _renewed(tx, record):
            serial = record.serial.hex().upper()
            yield Due(record.owner, record.profile, record.source.value, state, record.not_after, serial)


def due_lists(home: Path, now: datetime, days: int) -> Iterator[Due]:
    """Yield the revocation lists of a home's trust that are past their date or soon will be: they refuse everything."""
    lists = [parse_crl(path.read_bytes(), str(path)) for path in (home / "trust" / "crl").glob("*.crl")]
    for crl in sorted(lists, key=lambda one: one.issuer.rfc4514_string()):
        end = crl.next_update_utc
        if end is not None and (state := _ending(end, now, days)):
            yield Due(crl.issuer.rfc4514_string(), "crl", "trust", state, end)


def due_state(begin: datetime, end: datetime, now: datetime, days: int) -> str:
    """Say what a certificate's dates ask for: expired, expiring, renewal due, or nothing."""
    return _ending(end, now, days) or ("renewal due" if now >= renewal_date(begin, end) else "")


def _ending(end: datetime, now: datetime, days: int) -> str:
    if now > end:
        return "expired"
    return "expiring" if end - now <= timedelta(days=days) else ""


def _renewed(tx: Transaction, record: CertificateRecord) -> bool:
    """Tell whether a later certificate stands in for this one; a party's slots on two curves are two things."""
    listed = certificates.listing(tx, owner=record.owner, profile=record.profile, source=record.source)
    later = [one for one in listed if one.not_before > record.not_before and one.not_after > record.not_after]
    curve = _curve(record)
    return any(one.state is CertificateState.VALID and _curve(one) == curve for one in later)


def _curve(record: CertificateRecord) -> str:
    return public_key(parse_certificate(record.der)).curve.name
