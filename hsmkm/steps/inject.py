"""Step 2: a provisioned meter's keys are written into it over DLMS and proved before it ships.

The meter comes with its model's initial keys. GUEK and GAK go under its initial master key, and a new association
verifies them; then the new master key under the old one; then the new GBEK, unused till then, under the new master key,
which proves that one; then the secret of its mechanism, if that takes one. At last the initial keys must be refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hsmkm.config import load_model
from hsmkm.errors import RefusedError
from hsmkm.steps.communicate import Conversation, conversation, find_meter, initial_key_set
from hsmkm.steps.credentials import secret_roles
from hsmkm.steps.party import Party
from hsmkm.steps.renew import (
    ALL_KEYS,
    Work,
    begin_counter,
    carry_out,
    failing,
    prepare,
    refuse_unfinished,
    shares_keys,
    start,
    was_sent,
)
from hsmkm.steps.results import Outcome
from hsmkm.steps.stages import with_probe
from hsmkm.store import key_sets, key_states, meters
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.store.meter import Meter


def inject_many(party: Party, places: Sequence[tuple[str, str]], association: str = "") -> list[Outcome]:
    """Inject meters, each (name, address), one after the other, in every association or in one.

    One that fails has its error in its outcome, and the others go on.
    """
    outcomes: list[Outcome] = []
    for name, address in places:
        with failing(outcomes, name, association):
            for each in (association,) if association else _associations(party, name):
                with failing(outcomes, name, each):
                    outcomes.append(inject(party, name, address, each))
    return outcomes


def _associations(party: Party, name: str) -> tuple[str, ...]:
    """Name a meter's associations; the only one needs no name."""
    names = load_model(find_meter(party, name).model, party.home).associations
    return names if len(names) > 1 else ("",)


def inject(party: Party, name: str, address: str, association: str = "") -> Outcome:
    """Inject one association of a provisioned meter, by name or the first; `resolve` finishes one left unknown.

    What was injected before is left as it is.
    """
    meter = _at(party, find_meter(party, name), address)
    with conversation(party, meter, association, enrolling=True) as speaking:
        refuse_unfinished(speaking)
        newest, state = _newest(speaking)
        roles = with_probe(speaking.model, (*ALL_KEYS, *secret_roles(speaking.model)))
        current, fresh = initial_key_set(party, meter, speaking.model), newest
        if state is KeyState.ACTIVE and not shares_keys(newest, current):
            number, detail = newest.ref.generation, "the meter was injected before"
            return Outcome(meter.title, "active", number, detail, association=speaking.association)
        if state is KeyState.ACTIVE or was_sent(speaking, newest):
            held = newest if state is KeyState.ACTIVE else current
            (outcome,) = carry_out(party, [prepare(speaking, held, roles)], prove_refusal=True)
            return outcome
        with party.store.begin("inject-prepare", meter.title, {"generation": fresh.ref.generation}) as tx:
            begin_counter(tx, speaking, current, fresh)
            renewal = start(tx, speaking, current, fresh, roles)
        (outcome,) = carry_out(party, [Work(speaking, renewal, current, fresh)], prove_refusal=True)
        return outcome


def _at(party: Party, meter: Meter, address: str) -> Meter:
    if not address or address == meter.address:
        return meter
    moved = replace(meter, address=address)
    with party.store.begin("meter-address", meter.title, {"address": address}) as tx:
        meters.update(tx, moved)
    return moved


def _newest(speaking: Conversation) -> tuple[KeySet, KeyState]:
    """Give the newest generation with its state; RefusedError where the meter was never provisioned or is spent."""
    meter = speaking.meter
    with speaking.party.store.read() as tx:
        found = key_sets.newest(tx, meter.system_title, *speaking.model.place)
        state = key_states.state(tx, found.ref) if found else None
    if found is None or state not in (KeyState.PRE_ACTIVE, KeyState.ACTIVE):
        raise RefusedError(f"meter {meter.title} has no keys to inject", hint="provision it with an order first")
    return found, state
