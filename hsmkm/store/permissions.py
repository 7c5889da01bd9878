"""Which third party may reach which meter through us; one that was withdrawn stays on record."""

from __future__ import annotations

from hsmkm.errors import PolicyError
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.schema import permissions
from hsmkm.store.store import Transaction

COLUMNS = ("party", "system_title", "state")
ROWS = AuthenticatedTable("hsmkm permission/1", permissions, ("party", "system_title"), COLUMNS)
GRANTED, WITHDRAWN = "granted", "withdrawn"


def grant(tx: Transaction, party: str, system_title: bytes) -> None:
    """Let a party reach a meter."""
    _set(tx, party, system_title, GRANTED)


def withdraw(tx: Transaction, party: str, system_title: bytes) -> None:
    """Let a party reach a meter no more."""
    _set(tx, party, system_title, WITHDRAWN)


def check(tx: Transaction, party: str, system_title: bytes) -> None:
    """Raise PolicyError unless the party may reach the meter, IntegrityError if the row was altered."""
    row = ROWS.fetch(tx, party=party, system_title=system_title)
    if row is None or row["state"] != GRANTED:
        title = system_title.hex().upper()
        raise PolicyError(f"{party} may not reach meter {title}", hint=f"hsmkm meter permit {title} {party}")


def _set(tx: Transaction, party: str, system_title: bytes, state: str) -> None:
    row = ROWS.fetch(tx, party=party, system_title=system_title)
    if row is None:
        ROWS.insert(tx, {"party": party, "system_title": system_title, "state": state})
    elif row["state"] != state:
        ROWS.replace(tx, row, {"state": state})
