"""Step 5: a meter is given to its concentrator, spoken to through it, and renewed in the same run.

address and concentrator recorded -> distribution (keys for a client, none for a relay) -> receipt
-> association through the concentrator -> renewal of the global keys (step 6) -> their distribution -> receipt

All associations of a meter are spoken in and renewed, for the factory knew the keys of all of them. Which of them a
client gets the keys of is said by the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from hsmkm.errors import PartlyDoneError, RefusedError
from hsmkm.steps.communicate import Conversation, associated, conversations, find_meter, split_address
from hsmkm.steps.credentials import Pair
from hsmkm.steps.distribute import Given, await_receipts, distribute
from hsmkm.steps.notices import leave_concentrator
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.renew import GLOBAL_KEYS, SLICE, failing, refuse_unfinished, renew
from hsmkm.steps.results import Outcome
from hsmkm.steps.tell import tell
from hsmkm.store import in_force, key_sets, key_states, meters, parties
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.store.meter import Meter
from hsmkm.store.parties import Party as Registered


def register(party: Party, places: Sequence[tuple[str, str]], concentrator: str, wait: int) -> list[Outcome]:
    """Register meters, each (name, address), behind a concentrator and renew their global keys.

    `wait` is how many seconds the concentrator has for each receipt. May be given again after a failure: what is done
    stays done. A meter that fails has its error in its outcome, and the others go on.
    """
    outcomes: list[Outcome] = []
    registered: defaultdict[str, list[str]] = defaultdict(list)
    for start in range(0, len(places), SLICE):
        with ExitStack() as held:
            given: list[Given] = []
            for name, address in places[start : start + SLICE]:
                with failing(outcomes, name):
                    meter = _behind(party, find_meter(party, name), concentrator, address)
                    every = held.enter_context(conversations(party, meter))
                    _refuse_strange_keys(every)
                    for speaking in every:
                        with failing(outcomes, name, speaking.association):
                            refuse_unfinished(speaking)
                            given.append((speaking, held_key_set(speaking)))
            given = _given_in_time(party, given, outcomes, wait)
            for speaking, key_set in given:
                with failing(outcomes, speaking.meter.title, speaking.association):
                    _speak(speaking, key_set)
                    registered[speaking.association].append(speaking.meter.title)
    for association, titles in registered.items():
        outcomes += renew(party, titles, GLOBAL_KEYS, association, wait=wait)
    return outcomes


def _refuse_strange_keys(every: Sequence[Conversation]) -> None:
    """Raise RefusedError where there are keys of an association that the model lacks: they would never be renewed."""
    (speaking, *_) = every
    with speaking.party.store.read() as tx:
        held = {item.ref for item, _ in key_sets.for_meter(tx, speaking.meter.system_title)}
    for ref in sorted(held):
        speaking.model.at((ref.security_setup, ref.client))


def _given_in_time(party: Party, given: list[Given], outcomes: list[Outcome], wait: int) -> list[Given]:
    """Distribute and wait; without its receipts every meter's outcome is the error, and none is left to speak to."""
    try:
        await_receipts(party, distribute(party, given, KeyState.ACTIVE), wait)
    except (RefusedError, PartlyDoneError) as error:
        outcomes += [
            Outcome(speaking.meter.title, "failed", 0, error.message, error, speaking.association)
            for speaking, _ in given
        ]
        return []
    return given


def held_key_set(speaking: Conversation) -> KeySet:
    """Give the generation in force, or the one that came with the meter and was never used from here."""
    place = speaking.meter.system_title, *speaking.model.place
    with speaking.party.store.read() as tx:
        found = in_force.in_meter(tx, *place) or key_sets.newest(tx, *place)
    if found is None:
        where = f" for association {speaking.association}" if speaking.association else ""
        raise RefusedError(
            f"there are no keys of meter {speaking.meter.title}{where}", hint="import its delivery package first"
        )
    return found


def _speak(speaking: Conversation, key_set: KeySet) -> None:
    """Associate through the concentrator: the keys are proved, and the meter is registered.

    Compromised keys carry nothing but the renewal that follows, which proves as much.
    """
    party, meter = speaking.party, speaking.meter
    if not _is_compromised(party, key_set):
        with associated(speaking, Pair.of(key_set)):
            pass
    with party.store.begin("meter-registered", meter.title, {"concentrator": meter.concentrator}) as tx:
        if key_states.state(tx, key_set.ref) is KeyState.PRE_ACTIVE:
            key_states.transition(tx, key_set.ref, KeyState.ACTIVE)
        meters.update(tx, replace(meters.require(tx, meter.system_title), registered=utc_now()))


def _is_compromised(party: Party, key_set: KeySet) -> bool:
    with party.store.read() as tx:
        return key_states.state(tx, key_set.ref) is KeyState.COMPROMISED


def concentrator_of(party: Party, name: str) -> Registered:
    """Give a registered concentrator; RefusedError where that party is none that meters can be behind."""
    with party.store.read() as tx:
        through = parties.require(tx, name)
    if through.role != "concentrator" or not through.address:
        raise RefusedError(
            f"party {name} is no concentrator with an address", hint="hsmkm party add --role concentrator --address"
        )
    return through


def _behind(party: Party, meter: Meter, concentrator: str, address: str) -> Meter:
    split_address(address, f"meter {meter.title}")
    concentrator_of(party, concentrator)
    moved = replace(meter, concentrator=concentrator, address=address)
    if moved != meter:
        detail = {"concentrator": concentrator, "address": address}
        with party.store.begin("meter-register", meter.title, detail) as tx:
            if meter.concentrator not in (None, concentrator):
                leave_concentrator(tx, meter)
            meters.update(tx, moved)
        tell(party)
    return moved
