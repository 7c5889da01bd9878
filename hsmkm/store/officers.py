"""Officers: the people and services with a role here, and the certificate by which an officer's signature is known.

A name that was removed stays on record, without any role in force; it can be registered again.
"""

from __future__ import annotations

from dataclasses import dataclass

from hsmkm.errors import RefusedError
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.canonical import Value
from hsmkm.store.schema import officers as table
from hsmkm.store.store import StoredRow, Transaction

OFFICER, OPERATOR, AUDITOR, SERVICE = "officer", "operator", "auditor", "service"
ROLES = (OFFICER, OPERATOR, AUDITOR, SERVICE)
REGISTERED, REMOVED = "registered", "removed"
FINGERPRINT_OCTETS = 32
COLUMNS = ("name", "powers", "fingerprint", "state")
ROWS = AuthenticatedTable("hsmkm officer/1", table, ("name",), COLUMNS)


@dataclass(frozen=True, slots=True)
class Officer:
    """Somebody with roles; `fingerprint` is the SHA-256 of the certificate (32 octets), empty where there is none."""

    name: str
    roles: tuple[str, ...]
    fingerprint: bytes = b""
    state: str = REGISTERED

    def has(self, *roles: str) -> bool:
        """Whether one of these roles is in force."""
        return self.state == REGISTERED and not set(roles).isdisjoint(self.roles)


def put(tx: Transaction, officer: Officer) -> None:
    """Register a name, or change what is registered of it; raises RefusedError for what is not well formed."""
    values = _values(officer)
    row = ROWS.fetch(tx, name=officer.name)
    if row is None:
        ROWS.insert(tx, values)
    else:
        ROWS.replace(tx, row, values)


def get(tx: Transaction, name: str) -> Officer | None:
    """Find who is registered under a name, removed or not; raises IntegrityError if the row was altered."""
    row = ROWS.fetch(tx, name=name)
    return None if row is None else _officer(row)


def listing(tx: Transaction) -> list[Officer]:
    """List everybody by name, removed names too."""
    return [_officer(row) for row in ROWS.rows(tx, ROWS.everything())]


def _values(officer: Officer) -> dict[str, Value]:
    if not officer.name or not officer.roles or not set(officer.roles) <= set(ROLES):
        raise RefusedError(f"officer {officer.name!r} is not well formed")
    if len(officer.fingerprint) not in (0, FINGERPRINT_OCTETS):
        raise RefusedError(f"the fingerprint of {officer.name} is not of SHA-256")
    powers = ",".join(role for role in ROLES if role in officer.roles)
    return {"name": officer.name, "powers": powers, "fingerprint": officer.fingerprint, "state": officer.state}


def _officer(row: StoredRow) -> Officer:
    return Officer(row["name"], tuple(row["powers"].split(",")), row["fingerprint"], row["state"])
