"""Gives the keys of a registered meter to its concentrator, and tells it which generation is in force.

A concentrator that is a client receives a generation before the meter is switched to it, and the activation after, so
that no reading is lost between. One that was agreed on with the meter is known after the switch only, and given then.
Of a meter with several associations a client gets the keys of those that the model says are for it
(`for_concentrator`), and of no other. A relay is told of the meter and its address, without keys. No generation is
given twice to the same client: it would refuse the second one as a replay.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from hsmkm.errors import PartlyDoneError, RefusedError
from hsmkm.packages.content import Purpose
from hsmkm.packages.send import outgoing
from hsmkm.steps.certify import trust_of
from hsmkm.steps.communicate import Conversation
from hsmkm.steps.deliver import ACCEPTED, SENT, send, sent_of, with_certificates
from hsmkm.steps.group_members import group_name
from hsmkm.steps.party import Party
from hsmkm.steps.results import Sent
from hsmkm.store import holders, intents, key_states, packages, parties
from hsmkm.store.intents import Intent
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.store.packages import PackageRecord
from hsmkm.store.store import Transaction
from hsmkm.token.types import KeyRole

POLL_SECONDS = 0.2
RELAY, CLIENT = "relay", "client"
ACTIVATION = "activation"
GIVEN, IN_FORCE = 0, 1
"""Revisions of a generation: given, then put in force."""


NOWHERE = (-1, -1)
Given = tuple[Conversation, KeySet]


def distribute(party: Party, given: Sequence[Given], state: KeyState) -> list[Sent]:
    """Send meters to their concentrators, one package for each, with keys where that is a client without them.

    Gives the packages whose receipts count: those sent now, and earlier ones with these keys that still wait.
    """
    content = defaultdict(list)
    waiting: dict[str, Sent] = {}
    told: set[bytes] = set()
    for speaking, key_set in sorted(given, key=lambda item: not _takes_keys(item[0])):
        title, takes_keys = speaking.meter.system_title, _takes_keys(speaking)
        if not _kind(speaking) or (title in told and not takes_keys):
            continue
        told.add(title)
        before = _given_before(speaking, key_set)
        waiting |= {item.id: sent_of(party, item) for item in before if item.state == SENT}
        lost = _state(speaking, key_set) is KeyState.COMPROMISED
        with_keys = takes_keys and not before and not lost
        said = KeyState.COMPROMISED if lost else state
        group = group_name(party, key_set.ref)
        item = outgoing(speaking.meter, key_set, said, with_keys=with_keys, group=group, revision=GIVEN)
        with party.store.read() as tx:
            item = with_certificates(tx, trust_of(party), item) if with_keys else item
        content[speaking.meter.concentrator or ""].append(item)
    return [*waiting.values(), *(send(party, Purpose.DISTRIBUTION, name, items) for name, items in content.items())]


def _given_before(speaking: Conversation, key_set: KeySet) -> list[PackageRecord]:
    """Find the packages, taken or still waiting, that gave this generation to the meter's concentrator."""
    with speaking.party.store.read() as tx:
        ids = {
            holder.package_id
            for holder in holders.for_key(tx, key_set.key(KeyRole.GUEK).identity)
            if holder.party == speaking.meter.concentrator and holder.ref == key_set.ref
        }
        found = [record for record in (packages.get(tx, item) for item in sorted(ids)) if record is not None]
    return [record for record in found if record.state in (SENT, ACCEPTED)]


def announce(party: Party, given: Sequence[Given], wait: int) -> None:
    """Give clients the fresh generations before the meters have them; PartlyDoneError without a receipt in time."""
    await_receipts(party, distribute(party, _of_clients(given), KeyState.PRE_ACTIVE), wait)


def activate(party: Party, given: Sequence[Given], wait: int) -> None:
    """Tell clients that the meters took the generations, with the keys of those that were not known before."""
    content = defaultdict(list)
    clients = [item for item in _of_clients(given) if _state(*item) is KeyState.ACTIVE]
    unknown = [item for item in clients if not _given_before(*item)]
    for speaking, key_set in (item for item in clients if item not in unknown):
        group = group_name(party, key_set.ref)
        item = outgoing(speaking.meter, key_set, KeyState.ACTIVE, with_keys=False, group=group, revision=IN_FORCE)
        content[speaking.meter.concentrator or ""].append(item)
    sent = distribute(party, unknown, KeyState.ACTIVE)
    sent += [send(party, Purpose.ACTIVATION, name, items) for name, items in content.items()]
    for speaking, _ in clients:
        _settle(speaking)
    await_receipts(party, sent, wait)


def _state(speaking: Conversation, key_set: KeySet) -> KeyState:
    with speaking.party.store.read() as tx:
        if not key_set.ref.generation:
            return key_set.state
        return key_states.state(tx, key_set.ref)


def owe_activation(tx: Transaction, speaking: Conversation, generation: int) -> None:
    """Record, with the switch itself, that a client is still to be told of it: a crash does not forget it."""
    concentrator = speaking.meter.concentrator
    if concentrator and speaking.model.for_concentrator and parties.require(tx, concentrator).kind == CLIENT:
        detail = {**speaking.place, "generation": generation}
        intents.open(tx, speaking.meter.system_title, ACTIVATION, detail)


def owed_activations(tx: Transaction, system_title: bytes | None = None) -> list[Intent]:
    """List the activations that were never sent."""
    return [intent for intent in intents.unfinished(tx, system_title) if intent.action == ACTIVATION]


def owed_at(intent: Intent, first: tuple[int, int]) -> tuple[int, int]:
    """Tell for which Security Setup and client an activation is owed: the first where its record names none."""
    detail = dict(intent.detail)
    return int(str(detail.get("security_setup", first[0]))), int(str(detail.get("client", first[1])))


def owed_here(speaking: Conversation) -> list[Intent]:
    """List the activations of one association of a meter that were never sent."""
    with speaking.party.store.read() as tx:
        owed = owed_activations(tx, speaking.meter.system_title)
    place = speaking.model.place
    return [item for item in owed if owed_at(item, place if speaking.is_first else NOWHERE) == place]


def _settle(speaking: Conversation) -> None:
    owed = owed_here(speaking)
    if owed:
        with speaking.party.store.begin("activation-sent", speaking.meter.title, {}) as tx:
            for intent in owed:
                intents.outcome(tx, intent.id, "sent")


def _of_clients(given: Sequence[Given]) -> list[Given]:
    return [item for item in given if _takes_keys(item[0])]


def _takes_keys(speaking: Conversation) -> bool:
    """Tell whether the meter's concentrator holds the keys of this association."""
    return speaking.model.for_concentrator and _kind(speaking) == CLIENT


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
