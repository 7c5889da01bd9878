"""The end of a meter's keys: they leave this party's store, and a signed record of it stays.

The record is signed and on disk before anything is destroyed, and named by the audit record of the transaction that
destroys. A destroyed generation leaves its state, its counters and who was given it. Afterwards the database is swept,
so that its files have the wrapped keys no more.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from hsmkm.errors import PartlyDoneError, RefusedError
from hsmkm.packages.content import Purpose
from hsmkm.steps import records
from hsmkm.steps.approve import of_meters, require_approval
from hsmkm.steps.communicate import find_meter
from hsmkm.steps.deliver import ACCEPTED
from hsmkm.steps.notices import owe
from hsmkm.steps.party import Party
from hsmkm.steps.records import DESTROYED, Doomed
from hsmkm.steps.renew import failing
from hsmkm.steps.results import Outcome
from hsmkm.steps.tell import tell
from hsmkm.steps.turning import leave_groups, quiet
from hsmkm.store import holders, key_sets, key_states, meters, packages, urgent
from hsmkm.store.groups import Renewal
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.store.meter import Meter, MeterState
from hsmkm.store.store import Transaction

SLICE = 1000
"""Key sets that are destroyed in one transaction, with one record."""

GIVEN_AWAY = (Purpose.DELIVERY.value, Purpose.TRANSFER.value)
ACTION = "meter-destroy"
DUE = "due"


def destroy(party: Party, names: Sequence[str], approval: str | None = None) -> list[Outcome]:
    """Destroy every key of meters that are at the end of their life, all or none; nothing is spoken with them again.

    Raises RefusedError while somebody speaks with one of them, ApprovalRequiredError where the policy lists it.
    """
    found = [find_meter(party, name) for name in dict.fromkeys(names)]
    reasons = [f"meter {meter.title} is destroyed" for meter in found if meter.at_rest is MeterState.DESTROYED]
    if reasons:
        raise RefusedError("not every meter can be destroyed, and none was", reasons)
    subject, request = of_meters(meter.title for meter in found)
    doomed: list[Doomed] = []

    def also(tx: Transaction) -> None:
        require_approval(tx, party, ACTION, subject, request, approval)
        now = [item[1].ref for meter in found for item in _all_of(tx, meter)]
        if now != [key_set.ref for _, key_set, _ in doomed]:
            raise RefusedError("keys of these meters were made at the same time", hint="begin again")
        for meter in found:
            with quiet(tx, meter):
                owe(tx, meter, KeyState.DEACTIVATED)
                leave_groups(tx, meter, Renewal.REMOVED)
                urgent.withdraw(tx, meter.system_title)
                gone = replace(meters.require(tx, meter.system_title), state=MeterState.DESTROYED.value)
                meters.update(tx, replace(gone, registered=None))

    with _alone(party):
        with party.store.read() as tx:
            doomed += [item for meter in found for item in _all_of(tx, meter)]
        outcomes = _destroyed(party, doomed, "end of life", subject, also)
    with failing(outcomes, party.settings.party.name):
        tell(party)
    return _swept(party, outcomes)


def destroy_due(party: Party, approval: str | None = None) -> list[Outcome]:
    """Destroy the copies whose day has come: what was given away, once its receipt came and the retention is over.

    Raises ApprovalRequiredError where the policy lists it; an approval is for what is due first, at most 1,000.
    """
    outcomes: list[Outcome] = []
    with _alone(party):
        while doomed := _due(party):
            outcomes += _destroyed(party, doomed, "given away", DUE, partial(_approved, party, doomed, approval))
            if approval:
                break
    return _swept(party, outcomes)


def _approved(party: Party, doomed: Sequence[Doomed], approval: str | None, tx: Transaction) -> None:
    request = {"key_sets": [str(key_set.ref) for _, key_set, _ in doomed]}
    require_approval(tx, party, ACTION, DUE, request, approval)


def _all_of(tx: Transaction, meter: Meter) -> list[Doomed]:
    return [(meter, key_set, state) for key_set, state in key_sets.for_meter(tx, meter.system_title)]


def _due(party: Party) -> list[Doomed]:
    """List what is due; the day alone is not believed without the receipt of who has the keys."""
    with party.store.read() as tx:
        found = key_sets.due(tx, SLICE)
        return [
            (meters.require(tx, key_set.ref.system_title), key_set, key_states.state(tx, key_set.ref))
            for key_set in found
            if _is_elsewhere(tx, key_set)
        ]


def _is_elsewhere(tx: Transaction, key_set: KeySet) -> bool:
    """Tell whether a set's meter is another's, or each of its keys was in a package that its recipient says it took."""
    if meters.require(tx, key_set.ref.system_title).at_rest is MeterState.TRANSFERRED:
        return True
    return all(
        any(_was_taken(tx, item.package_id) for item in holders.for_key(tx, key.identity)) for key in key_set.keys
    )


def _was_taken(tx: Transaction, package_id: str) -> bool:
    record = packages.get(tx, package_id)
    return record is not None and record.purpose in GIVEN_AWAY and record.state == ACCEPTED


def _destroyed(
    party: Party, doomed: Sequence[Doomed], reason: str, subject: str, also: Callable[[Transaction], None]
) -> list[Outcome]:
    record_id, sha256, path = records.write(party, doomed, reason)
    detail = {"record": record_id, "sha256": sha256, "key_sets": len(doomed), "reason": reason}
    with party.store.begin(DESTROYED, subject, detail) as tx:
        for _, key_set, state in doomed:
            if key_states.state(tx, key_set.ref) is not state:
                raise RefusedError(f"key set {key_set.ref} was changed at the same time", hint="begin again")
        also(tx)
        for _, key_set, _ in doomed:
            key_sets.destroy(tx, key_set.ref)
    records.finish(party)
    newest: dict[str, int] = {}
    for meter, key_set, _ in doomed:
        newest[meter.title] = max(newest.get(meter.title, 0), key_set.ref.generation)
    return [Outcome(title, "destroyed", number, f"record {path}") for title, number in newest.items()]


def _swept(party: Party, outcomes: list[Outcome]) -> list[Outcome]:
    if outcomes and not party.store.sweep():
        text = "the keys are destroyed, and may still lie in deleted parts of the database's files"
        hint = "stop what reads the store, and give: hsmkm meter destroy --sweep"
        error = PartlyDoneError(text, hint=hint)
        return [replace(item, error=item.error or error) for item in outcomes]
    return outcomes


def sweep(party: Party) -> None:
    """Leave nothing of destroyed keys in the database's files; PartlyDoneError while another process reads it."""
    if not party.store.sweep():
        raise PartlyDoneError("the database cannot be swept now", hint="stop what reads the store")


@contextmanager
def _alone(party: Party) -> Iterator[None]:
    """Be the one process that destroys here, after finishing what a crash left."""
    with (party.home / "records.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records.finish(party)
        try:
            yield
        finally:
            records.finish(party)
