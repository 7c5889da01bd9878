"""A meter goes to another utility: all its keys in a package for it, and from its receipt on nothing of it is ours.

From the package on nothing is spoken with the meter here, so that the keys on their way stay the ones it holds. The
receipt ends it: the keys are deactivated here and due for destruction; a refusal takes the meter up again. The new
owner is asked, as it takes the package, to replace everything that the former owner knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hsmkm.errors import RefusedError
from hsmkm.packages.content import Purpose
from hsmkm.packages.send import Outgoing, outgoing
from hsmkm.steps.approve import of_meters, require_approval
from hsmkm.steps.certify import trust_of
from hsmkm.steps.communicate import find_meter
from hsmkm.steps.deliver import exportable, send, with_certificates
from hsmkm.steps.notices import owe
from hsmkm.steps.party import Party
from hsmkm.steps.renew import failing
from hsmkm.steps.results import Outcome
from hsmkm.steps.tell import tell
from hsmkm.steps.turning import quiet
from hsmkm.store import meters
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.store.meter import Meter, MeterState
from hsmkm.store.store import Transaction

ACTION = "meter-transfer"
_Held = list[tuple[KeySet, KeyState]]


def transfer(party: Party, names: Sequence[str], to: str, approval: str | None = None) -> list[Outcome]:
    """Give meters to another utility, all or none; RefusedError names each whose keys are in doubt or compromised.

    Raises ApprovalRequiredError where the policy lists it.
    """
    found = [find_meter(party, name) for name in dict.fromkeys(names)]
    with party.store.read() as tx:
        held = {meter: _held(tx, meter) for meter in found}
    reasons = [item for item in held.values() if isinstance(item, str)]
    if reasons:
        raise RefusedError("not every meter can be transferred, and none was", reasons)
    subject, request = of_meters(meter.title for meter in found)

    def leave(tx: Transaction) -> None:
        require_approval(tx, party, ACTION, subject, {**request, "to": to}, approval)
        for meter, before in held.items():
            with quiet(tx, meter):
                if _held(tx, meter) != before:
                    raise RefusedError(f"meter {meter.title} was changed at the same time", hint="begin again")
                owe(tx, meter, KeyState.SUSPENDED)
                meters.update(tx, replace(meter, state=MeterState.TRANSFERRING.value))

    content = [item for meter, every in held.items() for item in _given(party, meter, every)]
    sent = send(party, Purpose.TRANSFER, to, content, leave)
    outcomes = [Outcome(meter.title, MeterState.TRANSFERRING.value, 0, f"package {sent.path}") for meter in found]
    with failing(outcomes, party.settings.party.name):
        tell(party)
    return outcomes


def _held(tx: Transaction, meter: Meter) -> _Held | str:
    if meters.require(tx, meter.system_title) != meter:
        return f"meter {meter.title}: it was changed at the same time"
    return exportable(tx, [meter])[0]


def _given(party: Party, meter: Meter, every: _Held | str) -> list[Outgoing]:
    if isinstance(every, str):
        raise TypeError(every)
    with party.store.read() as tx:
        given = [outgoing(meter, *item, address="") for item in every]
        return [with_certificates(tx, trust_of(party), given[0]), *given[1:]]
