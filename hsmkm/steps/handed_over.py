"""What the receipt of a transfer, and the taking of one, do to a meter; each within the transaction that keeps it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hsmkm.packages.content import Purpose
from hsmkm.steps.notices import owe
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.replaceable import ask
from hsmkm.steps.turning import leave_groups, move
from hsmkm.store import holders, key_sets, meters, urgent
from hsmkm.store.groups import Renewal
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.store.meter import Meter, MeterState
from hsmkm.store.packages import PackageRecord
from hsmkm.store.store import Transaction


def end_transfer(party: Party, tx: Transaction, package: PackageRecord, *, accepted: bool) -> None:
    """Let go of the meters of a transfer that its recipient took, or take them up again."""
    if package.purpose != Purpose.TRANSFER.value:
        return
    for title in sorted({item.ref.system_title for item in holders.of_package(tx, package.id)}):
        meter = meters.require(tx, title)
        if meter.at_rest is MeterState.TRANSFERRING:
            _let_go(party, tx, meter) if accepted else _take_up(tx, meter)


def _let_go(party: Party, tx: Transaction, meter: Meter) -> None:
    owe(tx, meter, KeyState.DEACTIVATED)
    leave_groups(tx, meter, Renewal.REMOVED)
    move(tx, meter, KeyState.ACTIVE, KeyState.DEACTIVATED)
    urgent.withdraw(tx, meter.system_title)
    due = utc_now() + timedelta(days=party.settings.policy.retention_days)
    for key_set, _ in key_sets.for_meter(tx, meter.system_title):
        key_sets.set_destroy_after(tx, key_set.ref, due)
    gone = replace(meter, address=None, concentrator=None, registered=None, state=MeterState.TRANSFERRED.value)
    meters.update(tx, gone)


def _take_up(tx: Transaction, meter: Meter) -> None:
    owe(tx, meter, KeyState.ACTIVE)
    meters.update(tx, replace(meter, state=None))


def begin_ownership(party: Party, tx: Transaction, key_set: KeySet, former: str) -> None:
    """Take a meter that its former owner transferred: everything that it knew is asked to be replaced."""
    meter = meters.require(tx, key_set.ref.system_title)
    if meter.at_rest is MeterState.TRANSFERRED:
        meter = replace(meter, state=None)
        meters.update(tx, meter)
    ask(tx, party, meter, key_set, f"{former} owned it and knows them")
