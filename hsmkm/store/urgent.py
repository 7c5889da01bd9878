"""Renewals that must come about before all others, because somebody knows keys that they must not.

An entry is for the keys of one association of a meter, or for a broadcast group (`group`, the rest empty). It names the
keys to replace, and is settled when a generation above all that there were when it was queued has them in force, each.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from hsmkm.store import key_sets
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.canonical import Value
from hsmkm.store.key_set import ROLE_NAMES, KeySetRef
from hsmkm.store.schema import urgent_renewals as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds
from hsmkm.token.types import KeyRole, MeterRole

KEY = ("group", "system_title", "security_setup", "client")
COLUMNS = (*KEY, "roles", "above", "reason", "queued", "settled")
ROWS = AuthenticatedTable("hsmkm urgent renewal/1", table, KEY, COLUMNS)

GLOBAL_ROLES: tuple[MeterRole, ...] = (KeyRole.GUEK, KeyRole.GAK, KeyRole.GBEK)
NOBODY = b""


@dataclass(frozen=True, slots=True)
class Urgent:
    """Keys that must be replaced: of one association of a meter, or of a group; `above` is a generation."""

    group: str
    system_title: bytes
    security_setup: int
    client: int
    roles: tuple[MeterRole, ...]
    above: int
    reason: str
    queued: datetime
    settled: datetime | None = None

    @property
    def title(self) -> str:
        """The meter's system title as text, or the name of the group."""
        return self.group or self.system_title.hex().upper()

    @property
    def place(self) -> tuple[int, int]:
        """The Security Setup and the client whose keys are replaced."""
        return self.security_setup, self.client


def queue(
    tx: Transaction,
    system_title: bytes,
    setup: int,
    client: int,
    reason: str,
    roles: tuple[MeterRole, ...] = GLOBAL_ROLES,
) -> None:
    """Ask for new keys of a meter's association; what was asked for before and did not come about yet stays asked."""
    above = key_sets.next_generation(tx, system_title, setup, client) - 1
    key: dict[str, Value] = {"group": "", "system_title": system_title, "security_setup": setup, "client": client}
    _queue(tx, key, roles, above, reason)


def queue_group(tx: Transaction, group: str, above: int, reason: str) -> None:
    """Ask for new keys of a broadcast group, above a generation of its keys."""
    key: dict[str, Value] = {"group": group, "system_title": NOBODY, "security_setup": 0, "client": 0}
    _queue(tx, key, (KeyRole.GAK, KeyRole.GBEK), above, reason)


def waiting(tx: Transaction) -> list[Urgent]:
    """List what is asked for and did not come about yet, oldest first; groups before meters of the same second."""
    statement = ROWS.everything().where(table.c.settled.is_(None))
    return sorted((_urgent(row) for row in ROWS.rows(tx, statement)), key=lambda item: (item.queued, not item.group))


def of_meter(tx: Transaction, system_title: bytes) -> list[Urgent]:
    """List what is asked for of one meter and did not come about yet."""
    statement = ROWS.everything().where(table.c.settled.is_(None), table.c.system_title == system_title)
    return [_urgent(row) for row in ROWS.rows(tx, statement)]


def settle(tx: Transaction, ref: KeySetRef, roles: tuple[MeterRole, ...]) -> None:
    """Take note that a generation is in force in which these keys are new; what it does not replace stays asked."""
    key: dict[str, Value] = {"group": "", "system_title": ref.system_title}
    _settle(tx, {**key, "security_setup": ref.security_setup, "client": ref.client}, roles, ref.generation)


def settle_group(tx: Transaction, group: str, generation: int) -> None:
    """Take note that a group broadcasts under keys of this generation."""
    key: dict[str, Value] = {"group": group, "system_title": NOBODY, "security_setup": 0, "client": 0}
    _settle(tx, key, tuple(ROLE_NAMES.values()), generation)


def withdraw(tx: Transaction, system_title: bytes) -> None:
    """Ask no more for new keys of a meter that is not ours to renew any longer."""
    statement = select(table).where(table.c.settled.is_(None), table.c.system_title == system_title)
    for row in ROWS.rows(tx, statement):
        ROWS.replace(tx, row, {"settled": to_seconds(tx.now)})


def _queue(tx: Transaction, key: dict[str, Value], roles: tuple[MeterRole, ...], above: int, reason: str) -> None:
    asked: dict[str, Value] = {"roles": _text(roles), "above": above, "reason": reason}
    row = ROWS.fetch(tx, **key)
    if row is None:
        ROWS.insert(tx, {**key, **asked, "queued": to_seconds(tx.now), "settled": None})
    elif row["settled"] is not None:
        ROWS.replace(tx, row, {**asked, "queued": to_seconds(tx.now), "settled": None})
    else:
        before = _urgent(row)
        reasons = dict.fromkeys((*before.reason.split("; "), reason))
        asked = {"roles": _text((*before.roles, *roles)), "above": max(above, before.above)}
        ROWS.replace(tx, row, {**asked, "reason": "; ".join(reasons)})


def _settle(tx: Transaction, key: dict[str, Value], roles: tuple[MeterRole, ...], generation: int) -> None:
    row = ROWS.fetch(tx, **key)
    if row is None or row["settled"] is not None or generation <= row["above"]:
        return
    left = tuple(role for role in _urgent(row).roles if role not in roles)
    ROWS.replace(tx, row, {"roles": _text(left)} if left else {"settled": to_seconds(tx.now)})


def _text(roles: tuple[MeterRole, ...]) -> str:
    return ",".join(role.value for role in dict.fromkeys(roles))


def _urgent(row: StoredRow) -> Urgent:
    values = {name: row[name] for name in COLUMNS}
    values |= {
        "roles": tuple(ROLE_NAMES[role] for role in row["roles"].split(",")),
        "queued": from_seconds(row["queued"]),
        "settled": from_seconds(row["settled"]),
    }
    return Urgent(**values)
