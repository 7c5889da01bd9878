"""Rotation of a party's storage and integrity keys: the next ones are made, and everything is brought under them.

A key set, a model's initial keys or a group's keys is unwrapped in the token and wrapped again there; its identities
and its place stay. Every row with a MAC gets one of the new integrity key, after the old one was verified: what was
altered is not blessed by it, it ends the rotation. Each batch is one transaction with its audit record, so a rotation
that was killed goes on where it was, and the store holds at every moment. Others work on meanwhile: a process that
began earlier seals under the old keys until its next call, and the rotation ends when nothing is under them any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Table, false, or_, select

from hsmkm.errors import RefusedError
from hsmkm.steps.approve import require_approval
from hsmkm.steps.party import Party
from hsmkm.steps.results import Resealed
from hsmkm.store import audit, check, groups, key_set_rows, key_sets, meters, models, schema
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.key_set import KeySetRef, StoredKey, pack, unpack
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.token.types import Sealed
from hsmkm.token.vault import Vault

BEGUN, BATCH, ENDED = "token-rotate", "token-rotate-batch", "token-rotate-end"
RETIRE, RETIRED = "token-retire", "token-retired"
BATCH_ROWS = 500


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a table that are under older keys, by `key`, and how one of them is brought under the newest."""

    table: Table
    key: tuple[str, ...]
    move: Callable[[Transaction, Mapping[str, Any]], None]

    def page(self, tx: Transaction, number: int, after: tuple[Any, ...] | None, limit: int) -> list[tuple[Any, ...]]:
        """Give the keys of the next rows that are under keys of a lower number."""
        columns = [self.table.c[name] for name in self.key]
        statement = select(*columns).where(_older(self.table, number)).order_by(*columns).limit(limit)
        if after is not None:
            statement = statement.where(_behind(columns, after))
        return [tuple(row[name] for name in self.key) for row in tx.all(statement)]

    def bring(self, tx: Transaction, number: int, key: tuple[Any, ...]) -> None:
        """Bring one row under the newest keys, unless somebody did so or took it away meanwhile."""
        statement = select(self.table).where(_older(self.table, number))
        for name, value in zip(self.key, key, strict=True):
            statement = statement.where(self.table.c[name] == value)
        row = tx.one(statement)
        if row is not None:
            self.move(tx, row)


def rotate(party: Party, approval: str | None = None) -> list[Resealed]:
    """Make the next keys, or go on with a rotation that did not end, and bring everything under them.

    Going on needs no further approval. Gives the rows of each table that were brought under them now. Raises
    IntegrityError, naming the row, for what does not fit its MAC; what was done until then stays, and the rotation goes
    on when it is given again.
    """
    number = _begin(party, approval)
    party.vault.keyring.create_up_to(number)
    done: dict[str, int] = {}
    while not _ended(party, number):
        for rows in _everything(party.vault):
            done[rows.table.name] = done.get(rows.table.name, 0) + _bring_all(party, rows, number)
    return [Resealed(number, table, count) for table, count in done.items()]


def _begin(party: Party, approval: str | None) -> int:
    """Record that a rotation begins, unless one goes on; the number of its keys."""
    number = party.vault.storage_key
    with party.store.read() as tx:
        going_on = unfinished(tx) or (number if _left(party, tx, number) else 0)
    if going_on:
        return going_on
    number += 1
    name = party.settings.party.name
    with party.store.begin(BEGUN, name, {"number": number}) as tx:
        require_approval(tx, party, BEGUN, name, {"number": number}, approval)
        if unfinished(tx):
            raise RefusedError("another process began a rotation", hint="wait for it, or give the command again")
    return number


def unfinished(tx: Transaction) -> int:
    """Tell the number of the keys that an unfinished rotation leads to; 0 where there is none."""
    last = {item.action: item.last_sequence for item in audit.tally(tx, BEGUN)}
    if last.get(BEGUN, 0) <= last.get(ENDED, 0):
        return 0
    (record,) = audit.log(tx, after=last[BEGUN] - 1, limit=1)
    return int(str(record.detail["number"]))


def _bring_all(party: Party, rows: _Rows, number: int) -> int:
    count, after = 0, None
    while True:
        with party.store.read() as tx:
            keys = rows.page(tx, number, after, BATCH_ROWS)
        if not keys:
            return count
        with party.store.begin(BATCH, rows.table.name, {"number": number, "rows": len(keys)}) as tx:
            for key in keys:
                rows.bring(tx, number, key)
        count, after = count + len(keys), keys[-1]


def _ended(party: Party, number: int) -> bool:
    """Record the end, if nothing is under older keys in the very transaction that says so."""
    with party.store.read() as tx:
        if _left(party, tx, number):
            return False
    try:
        with party.store.begin(ENDED, party.settings.party.name, {"number": number}) as tx:
            _refuse_left(party, tx, number)
    except _NotYetError:
        return False
    return True


class _NotYetError(RefusedError):
    """Somebody wrote under older keys between the last look and the end."""


def _refuse_left(party: Party, tx: Transaction, number: int) -> None:
    if _left(party, tx, number):
        raise _NotYetError("rows came under older keys meanwhile")


def _left(party: Party, tx: Transaction, number: int) -> list[str]:
    """Name the tables that have rows under keys of a lower number."""
    return [rows.table.name for rows in _everything(party.vault) if rows.page(tx, number, None, 1)]


def retire(party: Party, approval: str | None = None) -> list[str]:
    """Destroy the keys of earlier numbers in the token, once a rotation ended; their labels.

    RefusedError while a rotation is not finished, something is under them, or there are none. No backup of before
    opens without them.
    """
    number = party.vault.storage_key
    if not party.vault.keyring.numbers_below(number):
        raise RefusedError("the token has no older keys", hint="hsmkm token rotate makes the next ones")
    name = party.settings.party.name
    with party.store.begin(RETIRE, name, {"below": number}) as tx:
        require_approval(tx, party, BEGUN, name, {"retire-below": number}, approval)
        _check_unused(party, tx, number)
    with party.store.begin(RETIRED, name, {"below": number}) as tx:
        _check_unused(party, tx, number)
        return party.vault.keyring.destroy_before(number)


def _check_unused(party: Party, tx: Transaction, number: int) -> None:
    if unfinished(tx):
        raise RefusedError("the rotation is not finished", hint="go on with it: hsmkm token rotate")
    reasons = [f"{table} has rows under older keys" for table in _left(party, tx, number)]
    if reasons:
        raise RefusedError("the older keys are in use", reasons, hint="bring everything over: hsmkm token rotate")


def _everything(vault: Vault) -> Iterator[_Rows]:
    yield _Rows(schema.models, ("name",), partial(_move_model, vault))
    yield _Rows(groups.KEY_ROWS.table, groups.KEY_ROWS.key, partial(_move_group, vault))
    yield _Rows(schema.key_sets, key_set_rows.KEY, partial(_move_key_set, vault))
    for rows in (*check.AUTHENTICATED, meters.ROWS):
        if rows not in (groups.KEY_ROWS, models.ROWS):
            yield _Rows(rows.table, rows.key, partial(_move_row, rows))


def _move_row(rows: AuthenticatedTable, tx: Transaction, row: StoredRow) -> None:
    rows.verify(tx, row)
    rows.replace(tx, row, {})


def _move_model(vault: Vault, tx: Transaction, row: StoredRow) -> None:
    keys = models.get_keys(tx, row["name"])
    if keys is not None:
        number, fresh = _resealed(vault, keys.storage_key, keys.keys, keys.suite)
        models.reseal(tx, replace(keys, storage_key=number, keys=fresh))
    else:
        _move_row(models.ROWS, tx, row)


def _move_group(vault: Vault, tx: Transaction, row: StoredRow) -> None:
    rows = groups.KEY_ROWS
    rows.verify(tx, row)
    group = groups.require(tx, row["group"])
    number, fresh = _resealed(vault, row["storage_key"], unpack(row["keys"], rows.name(row)), group.suite)
    rows.replace(tx, row, {"storage_key": number, "keys": pack(fresh)})


def _move_key_set(vault: Vault, tx: Transaction, row: StoredRow) -> None:
    key_set = key_sets.get(tx, KeySetRef(*(row[name] for name in key_set_rows.KEY)))
    number, fresh = _resealed(vault, key_set.storage_key, key_set.keys, key_set.suite)
    meter = meters.require(tx, key_set.ref.system_title)
    moved = replace(key_set, storage_key=number, keys=fresh)
    key_sets.reseal(tx, key_sets.authenticate(vault, moved, meter))


def _resealed(vault: Vault, number: int, keys: tuple[StoredKey, ...], suite: int) -> tuple[int, tuple[StoredKey, ...]]:
    fresh = [replace(key, wrapped=vault.reseal(key.role, Sealed(number, key.wrapped), suite).wrapped) for key in keys]
    return vault.storage_key, tuple(fresh)


def _older(table: Table, number: int) -> ColumnElement[bool]:
    names = [name for name in ("mac_key", "storage_key") if name in table.c]
    return or_(false(), *(table.c[name] < number for name in names))


def _behind(columns: Sequence[ColumnElement[Any]], values: tuple[Any, ...]) -> ColumnElement[bool]:
    """Compare a composite key, the first column weighing most."""
    found: ColumnElement[bool] = false()
    for column, value in reversed(list(zip(columns, values, strict=True))):
        found = or_(column > value, (column == value) & found)
    return found
