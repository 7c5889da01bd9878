"""Goes through the whole store and names every row that is not as it was written."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator

from sqlalchemy import and_, func, select

from hsmkm.errors import IntegrityError, PolicyError
from hsmkm.store import (
    approvals,
    campaigns,
    certificates,
    certified_keys,
    counters,
    groups,
    holders,
    intents,
    key_set_rows,
    key_states,
    meters,
    models,
    officers,
    orders,
    packages,
    parties,
    permissions,
    renewals,
    retirement,
    state,
    sums,
    transactions,
    urgent,
)
from hsmkm.store.cells import text_of
from hsmkm.store.key_set import STATE_NUMBERS, KeyState, unpack
from hsmkm.store.problem import Problem
from hsmkm.store.schema import audit as audit_table
from hsmkm.store.schema import group_keys, group_members, key_sets
from hsmkm.store.schema import key_states as states
from hsmkm.store.schema import meters as meter_table
from hsmkm.store.store import Transaction

AUTHENTICATED = (
    parties.ROWS,
    certificates.ROWS,
    certificates.ISSUANCES,
    certified_keys.ROWS,
    packages.ROWS,
    key_states.ROWS,
    counters.ROWS,
    counters.RECEIVE_ROWS,
    transactions.ROWS,
    permissions.ROWS,
    officers.ROWS,
    approvals.ROWS,
    groups.ROWS,
    groups.KEY_ROWS,
    groups.MEMBER_ROWS,
    urgent.ROWS,
    retirement.ROWS,
    models.ROWS,
    orders.ROWS,
    certificates.LISTS,
    renewals.ROWS,
    campaigns.ROWS,
    intents.ROWS,
    holders.LISTS,
)
DOES_NOT_FIT = "it does not fit its mac"
KEYS_AT_ONCE = 500_000
KEYS_OF_A_SET = 4


def check(tx: Transaction) -> Iterator[Problem]:
    """Yield every problem: rows against their MAC, rows that nothing covers, keys used twice.

    The audit chain has a check of its own. Raises PolicyError without a token.
    """
    if tx.authenticator is None:
        raise PolicyError("the store is only checked with the token", hint="its macs are made there")
    for authenticated in AUTHENTICATED:
        yield from (_problem(name) for name in authenticated.faults(tx))
    yield from (_problem(name) for name in meters.faults(tx))
    yield from (_problem(name) for name in key_set_rows.faults(tx))
    yield from (_problem(name) for name in holders.faults(tx))
    yield from _wrong_sums(tx)
    yield from _uncovered_meters(tx)
    yield from _orphan_states(tx)
    yield from _unknown_batches(tx)
    yield from duplicates(tx)
    yield from _keys_of_two_groups(tx)


def _wrong_sums(tx: Transaction) -> Iterator[Problem]:
    """Yield the tables from which rows are missing, or to which rows of an earlier time came back."""
    try:
        found = state.fetch(tx)
    except IntegrityError as error:
        yield Problem(state.NAME, "1", error.message)
        return
    if found is None:
        if not state.is_new(tx):
            yield Problem(state.NAME, "1", "it is gone")
        return
    for table, text in sums.differences(tx.connection, found.sums):
        yield Problem(table, "as a whole", text)


def duplicates(tx: Transaction) -> Iterator[Problem]:
    """Yield key sets that hold a wrapped key which another identity has too, or another meter without a group.

    AES key wrap is deterministic, so equal wrapped keys are equal keys. One key in two meters is right for a model's
    initial keys, and for meters that are or were in one group. The store is read once for each 500,000 keys, so that
    memory stays bounded.
    """
    sets = tx.connection.scalar(select(func.count()).select_from(key_sets)) or 0
    passes = sets * KEYS_OF_A_SET // KEYS_AT_ONCE + 1
    sharing = _Sharing(tx)
    for turn in range(passes):
        yield from _duplicates_in(tx, turn, passes, sharing)


class _Sharing:
    """Who may have one key: meters of one group, and every meter of a model its initial keys."""

    def __init__(self, tx: Transaction) -> None:
        self._initial = set(models.every_initial_identity(tx))
        self._groups: dict[bytes, set[str]] = defaultdict(set)
        for row in tx.stream(select(group_members.c.system_title, group_members.c.group)):
            self._groups[row["system_title"]].add(row["group"])

    def allowed(self, identity: bytes, one: bytes, other: bytes) -> bool:
        empty: set[str] = set()
        together = self._groups.get(one, empty) & self._groups.get(other, empty)
        return one == other or bool(together) or identity in self._initial


def _duplicates_in(tx: Transaction, turn: int, passes: int, sharing: _Sharing) -> Iterator[Problem]:
    owners: dict[tuple[int, bytes], tuple[bytes, bytes]] = {}
    columns = (key_sets.c[name] for name in (*key_set_rows.KEY, "storage_key", "keys"))
    for row in tx.stream(select(*columns).where(key_sets.c.generation > 0)):
        name, title = key_set_rows.row_name(row), row["system_title"]
        try:
            keys = unpack(row["keys"], name)
        except IntegrityError:
            continue  # named already: it does not fit its MAC
        for key in keys:
            if zlib.crc32(key.wrapped) % passes == turn:
                owner, first = owners.setdefault((row["storage_key"], key.wrapped), (key.identity, title))
                if owner != key.identity:
                    yield _problem(name, f"its {key.role} key is also the key of identity {owner.hex()}")
                elif not sharing.allowed(owner, first, title):
                    yield _problem(name, f"its {key.role} key is also that of meter {text_of(first)}")


def _keys_of_two_groups(tx: Transaction) -> Iterator[Problem]:
    """Yield groups that have a key of another group: a broadcast for one would be taken by the other."""
    owners: dict[bytes, str] = {}
    for row in tx.stream(select(group_keys).order_by(group_keys.c.group, group_keys.c.generation)):
        name = groups.KEY_ROWS.name(row)
        try:
            keys = unpack(row["keys"], name)
        except IntegrityError:
            continue  # named already: it does not fit its MAC
        for key in keys:
            known = {owners.setdefault(octets, row["group"]) for octets in (key.identity, key.wrapped)}
            if known != {row["group"]}:
                other = min(known - {row["group"]})
                yield _problem(name, f"its {key.role} key is also a key of group {other}")


def _uncovered_meters(tx: Transaction) -> Iterator[Problem]:
    covered = select(key_sets.c.system_title).where(key_sets.c.system_title == meter_table.c.system_title).exists()
    statement = select(meter_table).where(meter_table.c.mac.is_(None), ~covered)
    for row in tx.stream(statement.order_by(meter_table.c.system_title)):
        yield _problem(meters.ROWS.name(row), "no mac covers it: it has neither key set nor change")


def _orphan_states(tx: Transaction) -> Iterator[Problem]:
    same = and_(*(states.c[name] == key_sets.c[name] for name in key_set_rows.KEY))
    statement = (
        select(states)
        .outerjoin_from(states, key_sets, same)
        .where(key_sets.c.system_title.is_(None), states.c.state != STATE_NUMBERS[KeyState.DESTROYED])
    )
    for row in tx.stream(statement):
        yield _problem(key_states.ROWS.name(row), "there is no such key set")


def _unknown_batches(tx: Transaction) -> Iterator[Problem]:
    known = select(audit_table.c.sequence).where(audit_table.c.sequence == key_sets.c.batch).exists()
    columns = (key_sets.c[name] for name in key_set_rows.KEY)
    for row in tx.stream(select(*columns).where(~known)):
        yield _problem(key_set_rows.row_name(row), "there is no audit record of its batch")


def _problem(name: str, text: str = DOES_NOT_FIT) -> Problem:
    table, row = name.split(" ", 1)
    return Problem(table, row, text)
