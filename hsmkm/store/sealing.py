"""Brings a store of an older program to this one's schema, and under MACs what that one had none for.

What is sealed is believed as it is found, once: the state of the store names the schema it was sealed for, and its
anchor, where there is one, refuses a second time.
"""

from __future__ import annotations

from dataclasses import replace

from hsmkm.store import schema, state
from hsmkm.store.anchor import Anchor
from hsmkm.store.guard import Opening
from hsmkm.store.store import Authenticator, Store, Transaction

ACTION = "store-upgrade"


def upgrade(url: str, authenticator: Authenticator, actor: str, anchor: Anchor | None) -> bool:
    """Upgrade a store, and tell whether anything was sealed; IntegrityError where its anchor contradicts it."""
    Store.create(url)
    with Store.open(url, authenticator, actor, anchor=anchor, opening=Opening.SEALING) as store:
        with store.read() as tx:
            if (since := _sealed_for(tx)) == schema.HEAD:
                return False
        with store.begin(ACTION, schema.HEAD, {"from": since}) as tx:
            _seal(tx)
    return True


def _sealed_for(tx: Transaction) -> str:
    found = state.fetch(tx)
    if found is None:
        return schema.HEAD if state.is_new(tx) else ""
    return found.schema


def _seal(tx: Transaction) -> None:
    if tx.before is not None:
        tx.before = replace(tx.before, schema=schema.HEAD)
