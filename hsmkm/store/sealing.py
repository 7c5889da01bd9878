"""Brings a store of an older program to this one's schema, and under MACs what that one had none for.

What is sealed is believed as it is found, once: the state of the store names the schema it was sealed for, and its
anchor, where there is one, refuses a second time.
"""

from __future__ import annotations

from dataclasses import replace

from hsmkm.store import (
    campaigns,
    certificates,
    holders,
    intents,
    key_set,
    key_set_rows,
    key_sets,
    models,
    orders,
    renewals,
    schema,
    state,
    sums,
)
from hsmkm.store.anchor import Anchor
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.cells import mac_of
from hsmkm.store.guard import Opening
from hsmkm.store.store import Authenticator, Store, StoredRow, Transaction
from hsmkm.store.times import from_seconds

ACTION = "store-upgrade"
ROWS_SINCE, CAMPAIGNS_SINCE = "0009", "0011"
"""The schemas since which every row of the tables below is under a MAC, and every campaign."""
OF_MODEL = "hsmkm model keys/1"
"""The label of the MAC that only the keys of a model had before."""


def upgrade(url: str, authenticator: Authenticator, actor: str, anchor: Anchor | None) -> bool:
    """Upgrade a store, and tell whether anything was sealed; IntegrityError where its anchor contradicts it."""
    Store.create(url)
    with Store.open(url, authenticator, actor, anchor=anchor, opening=Opening.SEALING) as store:
        with store.read() as tx:
            if (since := _sealed_for(tx)) == schema.HEAD:
                return False
        with store.begin(ACTION, schema.HEAD, {"from": since}) as tx:
            _seal(tx, since)
    return True


def _sealed_for(tx: Transaction) -> str:
    found = state.fetch(tx)
    if found is None:
        return schema.HEAD if state.is_new(tx) else ""
    return found.schema


def _seal(tx: Transaction, since: str) -> None:
    if tx.before is None:
        return
    later = state.not_summed(since)
    counted = {name: (count, 0) for name, (count, _) in sums.taken(tx.connection).items() if name in later}
    tx.before = replace(tx.before, schema=schema.HEAD, sums={**tx.before.sums, **counted})
    seals = state.seals_since(since)
    if ROWS_SINCE in seals:
        _seal_rows(tx)
    if CAMPAIGNS_SINCE in seals:
        _seal_table(tx, campaigns.ROWS)


def _seal_table(tx: Transaction, rows: AuthenticatedTable) -> None:
    for row in tx.stream(rows.everything()):
        rows.replace(tx, row, {})


def _seal_rows(tx: Transaction) -> None:
    for rows in (orders.ROWS, certificates.LISTS, renewals.ROWS, intents.ROWS):
        _seal_table(tx, rows)
    for row in tx.stream(models.ROWS.everything()):
        if row["keys"] is not None:
            _verify_model(tx, row)
        models.ROWS.replace(tx, row, {})
    for row in tx.stream(key_set_rows.with_meter().where(schema.key_sets.c.destroy_after.is_not(None))):
        _seal_key_set(tx, row)
    holders.seal(tx)


def _verify_model(tx: Transaction, row: StoredRow) -> None:
    """Verify the MAC that a model's keys had."""
    name = models.ROWS.name(row)
    named = key_set.named(key_set.unpack(row["keys"], name))
    tx.verify(name, mac_of(row, name), OF_MODEL, row["name"], row["suite"], row["storage_key"], *named)


def _seal_key_set(tx: Transaction, row: StoredRow) -> None:
    """Put the date of destruction under the MAC, which was made without it."""
    found, meter = key_set_rows.verified_with_meter(tx, {**row, "destroy_after": None})
    if tx.authenticator is not None:
        dated = replace(found, destroy_after=from_seconds(row["destroy_after"]))
        key_sets.reseal(tx, key_set.authenticate(tx.authenticator, dated, meter))
