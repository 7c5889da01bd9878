"""Finds out what a meter holds after a renewal that did not end, records it, and goes on with fresh keys.

GUEK and GAK are found by associating under each pair that can be true; which comes first depends on whether the meter
acknowledged. The master key is found by transferring the fresh generation's own unused GBEK, wrapped under each
candidate. Attempts are durable and limited for each meter and day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from hsmkm.config import load_model
from hsmkm.errors import HsmkmError, IntegrityError, ProtocolError, TransportError
from hsmkm.link.client import MeterRefusedError
from hsmkm.steps.agree import by_agreement
from hsmkm.steps.attempts import in_doubt, note_refusal, spend
from hsmkm.steps.communicate import (
    Conversation,
    active_key_set,
    associated,
    conversation,
    find_meter,
    initial_key_set,
)
from hsmkm.steps.credentials import Pair, secret_roles
from hsmkm.steps.distribute import activate, await_receipts, distribute, owed_activations, owed_at, owed_here
from hsmkm.steps.group_members import shared_with
from hsmkm.steps.into_force import switch
from hsmkm.steps.party import Party
from hsmkm.steps.renew import (
    ALL_KEYS,
    KEY_TRANSFER,
    RECEIPT_SECONDS,
    Work,
    add_generation,
    carried,
    carry_out,
    close_intents,
    complete,
    failing,
    key_transfer_method,
    meter_answers,
    open_renewals,
    prepare,
    prove_old_refused,
    transfer_payload,
)
from hsmkm.steps.results import Outcome
from hsmkm.steps.stages import with_probe
from hsmkm.steps.way_back import settle
from hsmkm.store import counters, intents, key_sets, key_states, renewals
from hsmkm.store.key_sets import KeySet
from hsmkm.store.key_states import KeyState
from hsmkm.store.renewals import Renewal, RenewalState
from hsmkm.token.types import KeyRole, MeterRole, SecretRole


@dataclass(frozen=True, slots=True)
class Truth:
    """The generation that each key in the meter was found to come from."""

    keys: Mapping[MeterRole, KeySet]

    def is_wholly(self, key_set: KeySet) -> bool:
        """Tell whether every key is this generation's, by identity."""
        return all(identity_of(source, role) == identity_of(key_set, role) for role, source in self.keys.items())

    def lacking(self, work: Work) -> tuple[MeterRole, ...]:
        """Name the keys of every transfer that the meter did not take wholly: a part proves little of the rest."""
        lost = [stage for stage in work.stages if any(self.keys[role] is not work.fresh for role in stage.roles)]
        return tuple(role for stage in lost for role in stage.roles)

    def is_before(self, work: Work) -> bool:
        """Tell whether the meter associates as it did before the renewal."""
        proving = [role for role in self.keys if role not in (KeyRole.GBEK, KeyRole.MASTER)]
        return all(identity_of(self.keys[role], role) == identity_of(work.current, role) for role in proving)


def identity_of(key_set: KeySet, role: MeterRole) -> bytes | None:
    """Give the identity of a key of a set; nothing where the set does not hold it."""
    return key_set.key(role).identity if key_set.has(role) else None


def resolve_all(party: Party, name: str, association: str = "", *, go_on: bool = True) -> list[Outcome]:
    """Finish what renewals left open in every association of a meter, or in one; those that fail stop no other."""
    meter = find_meter(party, name)
    whole = load_model(meter.model, party.home)
    with party.store.read() as tx:
        open_ones = renewals.unfinished(tx, meter.system_title)
        places = {item.place for item in open_ones}
        places |= {owed_at(item, whole.place) for item in owed_activations(tx, meter.system_title)}
    names = [whole.at(place).association_name for place in sorted(places)] or [""]
    outcomes: list[Outcome] = []
    for each in [association] if association else names:
        with failing(outcomes, name, each):
            outcomes.append(resolve(party, name, each, go_on=go_on))
    return outcomes


def resolve(party: Party, name: str, association: str = "", *, go_on: bool = True) -> Outcome:
    """Finish what a renewal left open on one meter in an association, by name or the first.

    Raises PartlyDoneError while the meter does not tell what it holds.

    With `go_on`, a renewal that did not wholly reach the meter goes on, with fresh keys in place of those of every
    transfer that the meter did not take wholly.
    """
    meter = find_meter(party, name)
    place = load_model(meter.model, party.home).association(association).place
    with party.store.read() as tx:
        open_ones = [one for one in renewals.unfinished(tx, meter.system_title) if one.place == place]
    injecting = any(one.from_generation == 0 for one in open_ones)
    with conversation(party, meter, association, enrolling=injecting) as speaking:
        open_ones = open_renewals(speaking)
        if not open_ones:
            return _tell_concentrator(speaking)
        work = _work(speaking, open_ones[-1])
        if by_agreement(work.renewal):
            return settle(work, go_on=go_on, wait=RECEIPT_SECONDS)
        truth = _find_truth(work)
        if work.current.ref.generation == 0 and not truth.is_before(work):
            prove_old_refused(work)
        if truth.is_wholly(work.fresh):
            outcome = _complete(work)
            activate(party, [(speaking, work.fresh)], RECEIPT_SECONDS)
            return outcome
        settled = _record(work, truth)
        group = shared_with(speaking, truth.lacking(work))
        lost = _is_compromised(party, settled)
        if not go_on or group or lost:
            if settled is not work.current and not lost:
                await_receipts(party, distribute(party, [(speaking, settled)], KeyState.ACTIVE), RECEIPT_SECONDS)
            detail = "what the meter holds is recorded"
            detail += ", compromised; go on with: hsmkm renew --urgent" if lost else " and in force"
            detail += f"; go on with: hsmkm group renew {group}" if group else ""
            return work.outcome("abandoned", settled, detail)
        again = prepare(speaking, settled, with_probe(speaking.model, truth.lacking(work)))
        (outcome,) = carry_out(party, [again], prove_refusal=work.current.ref.generation == 0)
        return outcome


def _is_compromised(party: Party, key_set: KeySet) -> bool:
    with party.store.read() as tx:
        return key_set.ref.generation > 0 and key_states.state(tx, key_set.ref) is KeyState.COMPROMISED


def _tell_concentrator(speaking: Conversation) -> Outcome:
    """Send the activation that a broken-off renewal still owes to a client, if any."""
    meter, settled = speaking.meter, partial(Outcome, association=speaking.association)
    if not owed_here(speaking):
        return settled(meter.title, "settled", 0, "no renewal of this meter is unfinished")
    key_set = active_key_set(speaking.party, meter, speaking.model)
    activate(speaking.party, [(speaking, key_set)], RECEIPT_SECONDS)
    return settled(meter.title, "settled", key_set.ref.generation, "its concentrator is told of the keys in force")


def unfinished(party: Party) -> list[str]:
    """Name every meter whose renewal did not end, or whose concentrator was not told, by system title."""
    with party.store.read() as tx:
        open_ones = {item.system_title for item in renewals.unfinished(tx, None)}
        return sorted(title.hex().upper() for title in open_ones | {item.system_title for item in owed_activations(tx)})


def _work(speaking: Conversation, renewal: Renewal) -> Work:
    with speaking.party.store.read() as tx:
        current = (
            key_sets.get(tx, speaking.ref(renewal.from_generation))
            if renewal.from_generation
            else initial_key_set(speaking.party, speaking.meter, speaking.model)
        )
        fresh = key_sets.get(tx, speaking.ref(renewal.to_generation))
    return Work(speaking, renewal, current, fresh)


def _find_truth(work: Work) -> Truth:
    if work.renewal.state is RenewalState.PREPARED:
        return Truth(dict.fromkeys((*ALL_KEYS, *secret_roles(work.speaking.model)), work.current))
    acknowledged = _acknowledged(work)
    if work.renewal.state is not RenewalState.UNKNOWN:
        with work.party.store.begin("renewal-unknown", work.title, {"reason": "the work was broken off"}) as tx:
            work.advance(tx, RenewalState.UNKNOWN)
            close_intents(tx, work.speaking.meter.system_title)
    meter_answers(work.speaking)
    pair = _true_pair(work, acknowledged=acknowledged)
    keys: dict[MeterRole, KeySet] = {KeyRole.GUEK: pair.guek, KeyRole.GAK: pair.gak}
    keys |= dict.fromkeys(secret_roles(work.speaking.model), pair.secret)
    return Truth({**keys, **_true_others(work, pair, acknowledged=acknowledged)})


def _acknowledged(work: Work) -> bool:
    """Tell whether the meter said yes to the newest transfer of this renewal; its intent knows, whatever came after."""
    if work.renewal.state is RenewalState.VERIFIED:
        return True
    wanted = {**work.speaking.place, "stage": work.renewal.stage, "generation": work.fresh.ref.generation}
    with work.party.store.read() as tx:
        begun = intents.listing(tx, work.speaking.meter.system_title, KEY_TRANSFER)
    outcomes = [item.outcome for item in begun if wanted.items() <= {**work.speaking.place, **item.detail}.items()]
    return outcomes[-1:] == ["acknowledged"]


def candidates(work: Work, *, acknowledged: bool) -> list[Pair]:
    """Order the pairs that can be true: old first unless the meter acknowledged, the mixed ones last.

    A secret changes when everything else was proved, so that it alone can be old or new.
    """
    reached = work.reached
    done = [role for stage in work.stages[: reached + 1] for role in stage.roles]
    if any(role in done for role in SecretRole):
        changed, unchanged = Pair.of(work.fresh), replace(Pair.of(work.fresh), secret=work.current)
        return [changed, unchanged] if acknowledged else [unchanged, changed]
    old, new = Pair.of(work.current), replace(Pair.of(work.fresh), secret=work.current)
    pairs = [new, old] if acknowledged or reached > 0 else [old, new]
    pairs += [replace(old, guek=work.fresh), replace(old, gak=work.fresh)]
    return (
        [
            pair
            for pair in pairs
            if (KeyRole.GUEK in done or pair.guek is work.current) and (KeyRole.GAK in done or pair.gak is work.current)
        ]
        if {KeyRole.GUEK, KeyRole.GAK} & set(done)
        else [old]
    )


def _true_pair(work: Work, *, acknowledged: bool) -> Pair:
    for pair in candidates(work, acknowledged=acknowledged):
        what = f"guek {pair.guek.ref.generation}, gak {pair.gak.ref.generation}"
        what += "".join(f", {role} {pair.secret.ref.generation}" for role in secret_roles(work.speaking.model))
        try:
            with associated(work.speaking, pair, partial(spend, work, what)):
                work.refused_in_a_row = 0
                return pair
        except (MeterRefusedError, IntegrityError, ProtocolError, TransportError) as error:
            note_refusal(work, what, error.message)
    raise in_doubt(work, "no pair of GUEK and GAK that can be true associates")


def _true_others(work: Work, pair: Pair, *, acknowledged: bool) -> dict[MeterRole, KeySet]:
    """Find where master key and GBEK come from, given the GUEK and GAK in force."""
    roles = work.renewal.roles
    if KeyRole.MASTER in roles:
        names = [stage.name for stage in work.stages]
        if work.reached < names.index("master"):
            return {KeyRole.MASTER: work.current, KeyRole.GBEK: work.current}
        return {KeyRole.MASTER: _true_master(work, pair), KeyRole.GBEK: work.fresh}
    return {KeyRole.MASTER: work.current, KeyRole.GBEK: _true_gbek(work, pair, acknowledged=acknowledged)}


def _true_gbek(work: Work, pair: Pair, *, acknowledged: bool) -> KeySet:
    """No association proves a GBEK: it is there with the keys of its own transfer, or when the meter said so."""
    reached = work.reached
    for place, stage in enumerate(work.stages[: reached + 1]):
        if KeyRole.GBEK not in stage.roles:
            continue
        pairs = ((KeyRole.GUEK, pair.guek), (KeyRole.GAK, pair.gak))
        if any(source is not work.fresh for role, source in pairs if role in stage.roles):
            return work.current
        if acknowledged or place < reached:
            return work.fresh
        return work.fresh if _transfers_again(work, pair) else work.current
    return work.current


def _transfers_again(work: Work, pair: Pair) -> bool:
    """Send the fresh GBEK once more where the answer was lost: nothing else tells, and it was never used.

    A group's GBEK is used once the group has switched to it without this meter; then it is not sent again.
    """
    what = f"gbek {work.fresh.ref.generation}"
    with work.party.store.read() as tx:
        if counters.current(tx, work.fresh.key(KeyRole.GBEK).identity, work.speaking.client_title) is not None:
            return False
    return _probe(work, pair, work.current, what)


def _true_master(work: Work, pair: Pair) -> KeySet:
    """Transfer the fresh, unused GBEK wrapped under each candidate: the meter unwraps it with its master key only."""
    for candidate in (work.fresh, work.current):
        what = f"master {candidate.ref.generation}"
        if _probe(work, pair, candidate, what):
            return candidate
    raise in_doubt(work, "no master key that can be true unwraps the probe")


def _probe(work: Work, pair: Pair, candidate: KeySet, what: str) -> bool:
    payload = transfer_payload(work.party, work.fresh, (KeyRole.GBEK,), candidate)
    title = work.speaking.meter.system_title
    with work.party.store.begin("master-probe", work.title, {"candidate": what}) as tx:
        intent = intents.open(tx, title, "master-probe", {"candidate": what})
    try:
        with associated(work.speaking, pair, partial(spend, work, what)) as client:
            client.action(key_transfer_method(work.speaking.model), payload)
    except HsmkmError as error:
        with work.party.store.begin("master-probe-outcome", work.title, {"outcome": error.message}) as tx:
            intents.outcome(tx, intent, "refused" if isinstance(error, MeterRefusedError) else "unknown")
        if not isinstance(error, MeterRefusedError | IntegrityError | ProtocolError | TransportError):
            raise
        note_refusal(work, what, error.message)
        return False
    with work.party.store.begin("master-probe-outcome", work.title, {"outcome": "accepted"}) as tx:
        intents.outcome(tx, intent, "accepted")
    return True


def _complete(work: Work) -> Outcome:
    with work.party.store.begin("renewal-verified", work.title, {"stage": work.renewal.stage}) as tx:
        work.advance(tx, RenewalState.VERIFIED)
    return complete(work)


def _record(work: Work, truth: Truth) -> KeySet:
    """Record what the meter holds: the current generation, or a new one that gathers the keys found true."""
    detail = {role.value: source.ref.generation for role, source in truth.keys.items()}
    keys = {}
    if not truth.is_wholly(work.current):
        for role, source in truth.keys.items():
            keys.update(carried(work.party, source, {role}))
    with work.party.store.begin("renewal-abandon", work.title, detail) as tx:
        work.advance(tx, RenewalState.ABANDONED)
        if not keys:
            return work.current
        sources = {source.ref for source in truth.keys.values() if source.ref.generation}
        lost = any(key_states.state(tx, ref) is KeyState.COMPROMISED for ref in sources)
        state = KeyState.COMPROMISED if lost else KeyState.ACTIVE
        found = add_generation(tx, work.speaking, work.current, keys, state)
        switch(tx, work.current, found)
        return found
