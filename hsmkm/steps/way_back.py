"""Finds out what a meter holds after a key_agreement that did not end, and leads back where nobody can know.

An answer that was lost took the meter's half of the key with it, so that a meter which made the key effective is under
a GUEK that only it has. The way back needs no GUEK: an association of general-ciphering, under a key that is made in
our token and wrapped under the master key, or agreed on by One-Pass Diffie-Hellman. In it a key_transfer brings a fresh
GUEK. GMAC takes the GUEK, so that where the model authenticates by it (mechanism 5) the way back does by ECDSA (7).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hsmkm.errors import IntegrityError, ProtocolError, RefusedError, TransportError
from hsmkm.link.client import Client
from hsmkm.meter_model import ECDSA, GENERAL_CIPHERING, GMAC, MeterModel
from hsmkm.steps.agree import (
    agree,
    candidates_of,
    first_that_associates,
    mark_unknown,
    put_in_force,
    verify,
)
from hsmkm.steps.attempts import in_doubt, note_refusal, spend
from hsmkm.steps.communicate import associated
from hsmkm.steps.credentials import Pair, new_key
from hsmkm.steps.renew import (
    KEY_TRANSFER,
    Work,
    add_generation,
    begin_counter,
    carried,
    close_intents,
    key_transfer_method,
    meter_answers,
    transfer_payload,
)
from hsmkm.steps.results import Outcome
from hsmkm.store import intents, renewals
from hsmkm.store.key_set import IDENTITY_OCTETS, ROLE_NUMBERS
from hsmkm.store.key_sets import KeySet, StoredKey
from hsmkm.store.key_states import KeyState
from hsmkm.store.renewals import RenewalState
from hsmkm.token.types import KeyRole

WAY_BACK = "way back"


def way_back(title: str) -> str:
    """Say how a meter comes back whose answer to key_agreement was lost."""
    return (
        f"hsmkm resolve {title}: it tries the keys that are known, and else transfers a fresh guek in an association "
        "of general-ciphering, which takes no guek"
    )


def model_of_way_back(model: MeterModel) -> MeterModel:
    """Give a model's settings as the way back speaks: general-ciphering under a key that takes no GUEK."""
    mechanism = ECDSA if model.authentication.mechanism == GMAC else model.authentication.mechanism
    return replace(
        model,
        authentication=replace(model.authentication, mechanism=mechanism),
        protection=replace(model.protection, form=GENERAL_CIPHERING, key=model.key_agreement.way_back_key),
    )


def settle(work: Work, *, go_on: bool, wait: int) -> Outcome:
    """Finish a renewal by key_agreement; PartlyDoneError while the meter does not tell what it holds.

    With `go_on`, a meter that did not take the key is asked to agree on another, and one that holds a key which only it
    knows is led back.
    """
    found: KeySet | None = work.current
    if work.renewal.state is not RenewalState.PREPARED:
        mark_unknown(work, "it is asked which key it holds")
        meter_answers(work.speaking)
        found = first_that_associates(work, [*candidates_of(work), work.current], spend)
    if found is work.current:
        return _abandoned(work, go_on=go_on, wait=wait)
    if found is None and not go_on:
        raise in_doubt(work, "it associates under no key that is known here; without --no-renew it is led back")
    verify(work, found or _led_back(work))
    return put_in_force(work, wait)


def _abandoned(work: Work, *, go_on: bool, wait: int) -> Outcome:
    """Record that the meter still holds what it held before, and go on from there."""
    with work.party.store.begin("renewal-abandon", work.title, {"guek": work.current.ref.generation}) as tx:
        work.advance(tx, RenewalState.ABANDONED)
    if go_on:
        return agree(work.speaking, work.current, wait=wait)
    return work.outcome("abandoned", work.current, "the meter holds the keys from before")


def _led_back(work: Work) -> KeySet:
    """Bring a fresh GUEK into a meter whose GUEK nobody here knows, and prove it; InDoubtError where that fails.

    Master key and GAK of the generation before are in force beyond doubt: an agreement changes the GUEK alone.
    """
    general = replace(work.speaking, model=model_of_way_back(work.speaking.model))
    try:
        with associated(general, Pair.in_force(work.current), partial(spend, work, WAY_BACK)) as client:
            fresh = _transfer(work, client)
    except (RefusedError, TransportError, ProtocolError, IntegrityError) as error:
        note_refusal(work, WAY_BACK, error.message)
        with work.party.store.begin("way-back-unknown", work.title, {"reason": error.message}) as tx:
            close_intents(tx, work.speaking.meter.system_title)
        raise in_doubt(work, f"the way back failed: {error.message}") from error
    if first_that_associates(work, [fresh], spend) is None:
        raise in_doubt(work, "the meter took a fresh guek on the way back and does not associate under it")
    return fresh


def _transfer(work: Work, client: Client) -> KeySet:
    """Make the fresh GUEK durable, and only then send it."""
    party, model = work.party, work.speaking.model
    with new_key(party, model, KeyRole.GUEK, work.current.suite) as key:
        made = StoredKey(KeyRole.GUEK, party.vault.random(IDENTITY_OCTETS), party.vault.seal(key).wrapped)
    keys = {**carried(party, work.current, set(ROLE_NUMBERS) - {KeyRole.GUEK}), KeyRole.GUEK: made}
    with party.store.begin("way-back", work.title, {"stage": WAY_BACK}) as tx:
        fresh = add_generation(tx, work.speaking, work.current, keys, KeyState.PRE_ACTIVE)
        begin_counter(tx, work.speaking, work.current, fresh)
        renewals.lead_to(tx, work.renewal.id, fresh.ref.generation)
        detail = {**work.speaking.place, "stage": WAY_BACK, "generation": fresh.ref.generation}
        intent = intents.open(tx, fresh.ref.system_title, KEY_TRANSFER, detail)
    client.action(key_transfer_method(model), transfer_payload(party, fresh, (KeyRole.GUEK,), work.current))
    with party.store.begin("key-transfer-outcome", work.title, {**detail, "outcome": "acknowledged"}) as tx:
        intents.outcome(tx, intent, "acknowledged")
    return fresh
