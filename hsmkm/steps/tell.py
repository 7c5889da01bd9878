"""Tells concentrators what they are owed: what became of the meters and keys that they were given.

A notice travels as an activation without keys, which says the state of a generation; a relay, which holds none, is told
of a withdrawal by a distribution without keys and address. Nobody waits for the receipt: a concentrator that was stolen
gives none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hsmkm.packages.content import MeterEntry, Purpose
from hsmkm.packages.send import Outgoing
from hsmkm.steps.deliver import send
from hsmkm.steps.notices import NOTICE
from hsmkm.steps.party import Party
from hsmkm.steps.results import Sent
from hsmkm.store import intents, meters, packages
from hsmkm.store.intents import Intent
from hsmkm.store.meter import Meter
from hsmkm.store.store import Transaction

CHANGED = 2
"""The revision of a generation whose state was changed after it was given and put in force."""


def tell(party: Party) -> list[Sent]:
    """Send every notice that is owed, one package for each concentrator and kind."""
    with party.store.read() as tx:
        owed = [item for item in intents.unfinished(tx) if item.action == NOTICE]
    parcels: defaultdict[tuple[str, Purpose], list[Intent]] = defaultdict(list)
    for item in owed:
        purpose = Purpose.ACTIVATION if item.detail["keys"] else Purpose.DISTRIBUTION
        parcels[str(item.detail["to"]), purpose].append(item)
    return [_send(party, purpose, to, items) for (to, purpose), items in parcels.items()]


def tell_of_receipt(party: Party, package_id: str) -> list[Sent]:
    """Send every notice that is owed, if the receipt of this package can have made one: that of a transfer."""
    with party.store.read() as tx:
        package = packages.get(tx, package_id)
    return tell(party) if package is not None and package.purpose == Purpose.TRANSFER.value else []


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
