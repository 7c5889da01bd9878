"""Goes on with a database that was restored: after this no counter, sequence or generation is given a second time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy import select

from hsmkm.errors import IntegrityError
from hsmkm.steps.approve import require_approval
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.results import Recovered
from hsmkm.store import audit, key_states, recovery, state, urgent
from hsmkm.store.anchor import Anchored
from hsmkm.store.check import check
from hsmkm.store.guard import Opening
from hsmkm.store.key_set import KeySetRef, KeyState, unpack
from hsmkm.store.key_set_rows import row_name
from hsmkm.store.recovery import Loss
from hsmkm.store.schema import key_sets
from hsmkm.store.store import Transaction
from hsmkm.token.types import MeterRole

ACTION = "store-recover"
SPENT = "its counter is spent since the store was recovered"


def open_recovery(home: Path, actor: str) -> AbstractContextManager[Party]:
    """Open a party whose anchor may contradict its store."""
    return open_party(home, actor, Opening.RECOVERY)


def recover_store(party: Party, approval: str | None) -> Recovered:
    """Raise every number above what was lost, and anchor the store anew; runs in a worker.

    Raises RefusedError where nothing was lost, IntegrityError where the database is not sound in itself, PolicyError
    where the policy wants an approval.
    """
    lost = _loss(party)
    name = party.settings.party.name
    detail = {"advance": lost.advance, "anchor": lost.anchor}
    with party.store.begin(ACTION, name, {**detail, "counter_jump": lost.counter_jump}) as tx:
        require_approval(tx, party, ACTION, name, detail, approval)
        raised, spent = recovery.recover(tx, lost)
        meters = queue_spent(tx, frozenset(spent)) if spent else 0
    return Recovered(lost.changes if lost.anchor >= 0 else None, lost.counter_jump, raised, meters)


def _loss(party: Party) -> Loss:
    with party.store.read() as tx:
        found = state.fetch(tx)
        problems = [*audit.verify(tx), *check(tx)]
    if found is None or problems:
        text = f"the first in {problems[0]}" if problems else "it has no state"
        hint = "put a backup in place that hsmkm store check finds no fault with but its anchor"
        raise IntegrityError(f"the store is not sound in itself: {text}", hint=hint)
    return recovery.loss(found, _anchored(party), party.settings.policy.max_counter_jump)


def _anchored(party: Party) -> Anchored | None:
    """Read the anchor; one that cannot be read is as good as none, and what was lost is not known then."""
    try:
        return party.store.guard.anchored() if party.store.guard else None
    except IntegrityError:
        return None


def queue_spent(tx: Transaction, spent: frozenset[bytes]) -> int:
    """Ask for new keys wherever a spent counter's key is, and say of how many associations."""
    found: dict[KeySetRef, tuple[MeterRole, ...]] = {}
    for row in tx.stream(select(key_sets)):
        roles = tuple(key.role for key in unpack(row["keys"], row_name(row)) if key.identity in spent)
        if roles:
            found[KeySetRef(row["system_title"], row["security_setup"], row["client"], row["generation"])] = roles
    live = [ref for ref in sorted(found) if key_states.state(tx, ref) is KeyState.ACTIVE]
    for ref in live:
        urgent.queue(tx, ref.system_title, ref.security_setup, ref.client, SPENT, found[ref])
    return len(live)
