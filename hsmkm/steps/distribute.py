"""Gives the keys of a registered meter to its concentrator, and tells it which generation is in force.

A concentrator that is a client receives a generation before the meter is switched to it, and the activation after, so
that no reading is lost between. A relay is told of the meter and its address, without keys.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from hsmkm.errors import PartlyDoneError, RefusedError
from hsmkm.packages.content import Purpose
from hsmkm.packages.send import outgoing
from hsmkm.steps.communicate import Conversation
from hsmkm.steps.deliver import ACCEPTED, SENT, Sent, send
from hsmkm.steps.party import Party
from hsmkm.store import packages, parties
from hsmkm.store.key_set import KeySet, KeyState

POLL_SECONDS = 0.2
RELAY, CLIENT = "relay", "client"
GIVEN, IN_FORCE = 0, 1
"""Revisions of a generation: given, then put in force."""


Given = tuple[Conversation, KeySet]


def distribute(party: Party, given: Sequence[Given], state: KeyState) -> list[Sent]:
    """Send meters to their concentrators, one package for each, with keys where that is a client."""
    content = defaultdict(list)
    for speaking, key_set in given:
        kind = _kind(speaking)
        if kind:
            item = outgoing(speaking.meter, key_set, state, with_keys=kind == CLIENT, revision=GIVEN)
            content[speaking.meter.concentrator or ""].append(item)
    return [send(party, Purpose.DISTRIBUTION, name, items) for name, items in content.items()]


def announce(party: Party, given: Sequence[Given], wait: int) -> None:
    """Give clients the fresh generations before the meters have them; PartlyDoneError without a receipt in time."""
    await_receipts(party, distribute(party, _of_clients(given), KeyState.PRE_ACTIVE), wait)


def activate(party: Party, given: Sequence[Given], wait: int) -> None:
    """Tell clients that the meters took the generations."""
    content = defaultdict(list)
    for speaking, key_set in _of_clients(given):
        item = outgoing(speaking.meter, key_set, KeyState.ACTIVE, with_keys=False, revision=IN_FORCE)
        content[speaking.meter.concentrator or ""].append(item)
    await_receipts(party, [send(party, Purpose.ACTIVATION, name, items) for name, items in content.items()], wait)


def _of_clients(given: Sequence[Given]) -> list[Given]:
    return [item for item in given if _kind(item[0]) == CLIENT]


def _kind(speaking: Conversation) -> str:
    """Tell whether the meter's concentrator is a relay or a client; empty where it has none."""
    if not speaking.meter.concentrator:
        return ""
    with speaking.party.store.read() as tx:
        return parties.require(tx, speaking.meter.concentrator).kind or RELAY


def await_receipts(party: Party, sent: Sequence[Sent], wait: int) -> None:
    """Wait for the receipt of each package; raises as `await_receipt`."""
    for item in sent:
        await_receipt(party, item, wait)


def await_receipt(party: Party, sent: Sent, wait: int) -> None:
    """Wait until the recipient's receipt is kept; the service keeps it as the concentrator posts it.

    Raises RefusedError where the recipient refused, PartlyDoneError when `wait` seconds are over.
    """
    deadline = time.monotonic() + wait
    while True:
        with party.store.read() as tx:
            record = packages.get(tx, sent.id)
        state = record.state if record else SENT
        if state == ACCEPTED:
            return
        if state != SENT:
            raise RefusedError(f"{sent.recipient} refused package {sent.id}", hint="hsmkm package list")
        if time.monotonic() >= deadline:
            raise PartlyDoneError(
                f"{sent.recipient} has not taken package {sent.id} within {wait} s",
                hint="it waits there for the concentrator; are `hsmkm serve` and `hsmkm concentrator run` running?",
            )
        time.sleep(POLL_SECONDS)
