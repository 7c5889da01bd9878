"""Tells concentrators what became of meters that they were given: suspended, taken up again, compromised, withdrawn.

That a notice is owed is recorded with the change itself, so that a crash does not forget it. It travels as an
activation without keys, which says the state of a generation; a relay, which holds none, is told of a withdrawal by a
distribution without keys and address. Nobody waits for the receipt: a concentrator that was stolen gives none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hsmkm.packages.content import MeterEntry, Purpose
from hsmkm.packages.send import Outgoing
from hsmkm.steps.deliver import send
from hsmkm.steps.party import Party
from hsmkm.steps.results import Sent
from hsmkm.store import holders, in_force, intents, key_sets, meters, urgent
from hsmkm.store.intents import Intent
from hsmkm.store.key_set import KeySetRef, KeyState
from hsmkm.store.meter import Meter
from hsmkm.store.store import Transaction

NOTICE = "notice"
CHANGED = 2
"""The revision of a generation whose state was changed after it was given and put in force."""


def owe(tx: Transaction, meter: Meter, state: KeyState) -> None:
    """Record that a meter's concentrator is to be told of the state of the keys that it was given.

    A withdrawal (`deactivated`) is told to a concentrator without keys too.
    """
    to = meter.concentrator
    if not to:
        return
    given = [ref for ref in _in_meter(tx, meter) if _was_given(tx, ref, to)]
    for ref in given:
        place = {"security_setup": ref.security_setup, "client": ref.client, "generation": ref.generation}
        intents.open(tx, meter.system_title, NOTICE, {"to": to, "state": state.value, "keys": True, **place})
    if not given and state is KeyState.DEACTIVATED:
        place = {"security_setup": 0, "client": 0, "generation": 0}
        intents.open(tx, meter.system_title, NOTICE, {"to": to, "state": state.value, "keys": False, **place})


def leave_concentrator(tx: Transaction, meter: Meter) -> None:
    """Take a meter from its concentrator: that is told, and what it knows is replaced before all else."""
    former = meter.concentrator or ""
    owe(tx, meter, KeyState.DEACTIVATED)
    for ref in _in_meter(tx, meter):
        keys = key_sets.get(tx, ref).keys
        known = tuple(key.role for key in keys if former in _holders(tx, key.identity))
        if known:
            place = meter.system_title, ref.security_setup, ref.client
            urgent.queue(tx, *place, f"concentrator {former} knows them", known)


def _holders(tx: Transaction, identity: bytes) -> set[str]:
    return {item.party for item in holders.for_key(tx, identity)}


def _in_meter(tx: Transaction, meter: Meter) -> list[KeySetRef]:
    refs = (key_set.ref for key_set, _ in key_sets.for_meter(tx, meter.system_title))
    places = sorted({(ref.security_setup, ref.client) for ref in refs})
    found = (in_force.in_meter(tx, meter.system_title, *place) for place in places)
    return [key_set.ref for key_set in found if key_set is not None]


def _was_given(tx: Transaction, ref: KeySetRef, party: str) -> bool:
    given = (item for key in key_sets.get(tx, ref).keys for item in holders.for_key(tx, key.identity))
    return any((item.party, item.ref) == (party, ref) for item in given)


def tell(party: Party) -> list[Sent]:
    """Send every notice that is owed, one package for each concentrator and kind."""
    with party.store.read() as tx:
        owed = [item for item in intents.unfinished(tx) if item.action == NOTICE]
    parcels: defaultdict[tuple[str, Purpose], list[Intent]] = defaultdict(list)
    for item in owed:
        purpose = Purpose.ACTIVATION if item.detail["keys"] else Purpose.DISTRIBUTION
        parcels[str(item.detail["to"]), purpose].append(item)
    return [_send(party, purpose, to, items) for (to, purpose), items in parcels.items()]


def _send(party: Party, purpose: Purpose, to: str, items: Sequence[Intent]) -> Sent:
    """Send notices; of several that speak of the same keys the last one counts."""
    with party.store.read() as tx:
        newest = {_place(item): item for item in items}
        entries = [_entry(meters.require(tx, item.system_title), item) for item in newest.values()]

    def settled(tx: Transaction) -> None:
        for item in items:
            intents.outcome(tx, item.id, "sent")

    return send(party, purpose, to, [Outgoing(entry) for entry in entries], settled)


def _place(item: Intent) -> tuple[object, ...]:
    detail = item.detail
    return item.system_title, detail["security_setup"], detail["client"], detail["generation"]


def _entry(meter: Meter, item: Intent) -> MeterEntry:
    setup, client, generation = (int(str(item.detail[name])) for name in ("security_setup", "client", "generation"))
    return MeterEntry(
        system_title=meter.system_title,
        serial=meter.serial,
        model=meter.model,
        suite=meter.suite,
        security_setup=setup,
        client=client,
        generation=generation,
        state=str(item.detail["state"]),
        revision=CHANGED,
    )
