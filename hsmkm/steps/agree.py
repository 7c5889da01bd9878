"""Step 6 by key_agreement: a GUEK that our token and the meter agree on (Ephemeral Unified Model, Security Setup).

Half of the key arrives with the meter's answer, so that it cannot be durable before the meter can hold it. What is
durable when is this:

| state        | what is true                                                                                  |
|--------------|-----------------------------------------------------------------------------------------------|
| prepared     | the renewal is committed, leading nowhere yet                                                 |
| sent         | committed before the first octet of our ephemeral point; its private half is in the token     |
| acknowledged | the key is derived under both AlgorithmIDs of the field, each a generation of its own,        |
|              | committed while the ephemeral pair still lives                                                |
| verified     | an association proved one of them; the other one is destroyed                                 |
| unknown      | anything else: `settle` tries what can be true, and else takes the way back (way_back.py)     |

Z and the private half never leave the token. Where it can derive only on the host, the policy decides before anything
is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from hsmkm.dlms import agreement, security_setup
from hsmkm.dlms.agreement import AlgorithmIds, PublicShare, ephemeral_info
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.protection import Protection
from hsmkm.dlms.types import KeyId, LogicalName, MethodRef, SecuritySuite, SystemTitle
from hsmkm.errors import HsmkmError, IntegrityError, PartlyDoneError, ProtocolError, RefusedError, TransportError
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.meter_model import MeterModel
from hsmkm.pki.profiles import DIGITAL_SIGNATURE
from hsmkm.pki.slots import Slot, curve_for
from hsmkm.steps.attempts import note_refusal
from hsmkm.steps.communicate import Conversation, associated, conversation, find_meter
from hsmkm.steps.credentials import CertifiedKey, Pair, TokenSigningKey, meter_key, policy_of, refuse_unproved
from hsmkm.steps.distribute import activate
from hsmkm.steps.into_force import refuse_part
from hsmkm.steps.party import Party
from hsmkm.steps.renew import (
    RECEIPT_SECONDS,
    InDoubtError,
    Work,
    add_generation,
    begin_counter,
    carried,
    close_intents,
    complete,
    current_key_set,
    failing,
    prove_old_refused,
    refuse_unfinished,
)
from hsmkm.steps.results import Outcome
from hsmkm.store import intents, key_sets, key_states, renewals
from hsmkm.store.key_set import IDENTITY_OCTETS, ROLE_NUMBERS
from hsmkm.store.key_sets import KeySet, StoredKey
from hsmkm.store.key_states import KeyState
from hsmkm.store.renewals import FINISHED, Renewal, RenewalState
from hsmkm.token.agreement import agree_dlms, make_ephemeral_pair
from hsmkm.token.derivation import Kdf, choose_rung
from hsmkm.token.ephemeral import EphemeralPair
from hsmkm.token.types import KeyRole, MeterRole

KEY_AGREEMENT = "key-agreement"
"""The stage of such a renewal, and the action of its intent."""

MAY_BE_HELD = (KeyState.PRE_ACTIVE, KeyState.COMPROMISED)
"""States of a generation that an agreement made and that a meter may be under, known to others or not."""

NOT_AGREED_ON = {
    KeyRole.GAK: "every APDU of the way back from a lost answer is authenticated with it",
    KeyRole.GBEK: "no association shows by which AlgorithmID a meter derived it",
    KeyRole.MASTER: "the way back from a lost answer, and every key_transfer after it, rest on it",
}
"""Why the other keys of a meter are renewed by key_transfer only."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an agreement with one meter rests on: the suite, both sides' signatures, both AlgorithmIDs and titles."""

    suite: SecuritySuite
    signer: TokenSigningKey
    verifier: CertifiedKey
    infos: tuple[bytes, ...]

    @classmethod
    def of(cls, speaking: Conversation, current: KeySet) -> Terms:
        """Gather them.

        Raises RefusedError where the suite has no public keys or the meter no accepted certificate, PolicyError where
        the token can derive only on the host and the policy forbids it.
        """
        party, meter, suite = speaking.party, speaking.meter, SecuritySuite(current.suite)
        ids = AlgorithmIds(bytes.fromhex(speaking.model.key_agreement.algorithm_id))
        algorithms = [each.of(suite, KeyId.GUEK) for each in (ids, ids.other())]
        titles = SystemTitle(speaking.client_title), SystemTitle(meter.system_title)
        choose_rung(party.vault, Kdf.SP800)
        label = Slot(DIGITAL_SIGNATURE.name, curve_for((current.suite,))).name
        return cls(
            suite,
            TokenSigningKey(party.vault, label),
            meter_key(party, meter.system_title, current.suite),
            tuple(ephemeral_info(algorithm, *titles) for algorithm in algorithms),
        )


def renew_by_agreement(
    party: Party,
    names: Sequence[str],
    roles: tuple[MeterRole, ...] = (KeyRole.GUEK,),
    association: str = "",
    *,
    prove_refusal: bool = False,
    wait: int = RECEIPT_SECONDS,
) -> list[Outcome]:
    """Renew the GUEK of meters by key_agreement, one meter after the other; `resolve` finishes one in doubt.

    Raises PolicyError where the policy forbids what the token needs for it; another error is in its meter's outcome.
    """
    outcomes: list[Outcome] = []
    for name in names:
        with (
            failing(outcomes, name, association),
            conversation(party, find_meter(party, name), association) as speaking,
        ):
            refuse_unfinished(speaking)
            refuse_unagreeable(speaking.model, roles)
            current = current_key_set(speaking)
            outcomes.append(agree(speaking, current, prove_refusal=prove_refusal, wait=wait))
    return outcomes


def refuse_unagreeable(model: MeterModel, roles: tuple[MeterRole, ...]) -> None:
    """Raise RefusedError where key_agreement would risk a meter, or the model does not know it."""
    refuse_unproved(model)
    for role in roles:
        if role is not KeyRole.GUEK:
            reason = NOT_AGREED_ON.get(KeyRole(role), "") if role in tuple(KeyRole) else "it is no key of a suite"
            raise RefusedError(f"a {role} key is not agreed on: {reason}", hint="renew it by key_transfer")
    if not model.security_setup.version:
        raise RefusedError(f"the Security Setup of model {model.name} is of version 0 and has no key_agreement")
    policy = policy_of(model)
    if not (policy.request & policy.response).covers(Protection.CIPHERED):
        raise RefusedError(
            f"meters of model {model.name} do not authenticate and encrypt everything, as the way back does",
            hint="see protection.policy of the model",
        )
    if not model.key_agreement.way_back:
        raise RefusedError(
            f"meters of model {model.name} have no way back: one whose answer to key_agreement is lost stays locked",
            hint="renew by key_transfer; which models have a way back is in docs/keys.md",
        )


def agree(speaking: Conversation, current: KeySet, *, prove_refusal: bool = False, wait: int) -> Outcome:
    """Agree on a fresh GUEK and prove it; a failure after the first octet leaves the renewal unknown."""
    with speaking.party.store.read() as tx:
        refuse_part(tx, current, (KeyRole.GUEK,))
    terms = Terms.of(speaking, current)
    with speaking.party.store.begin("renewal-prepare", speaking.meter.title, {"roles": [KeyRole.GUEK.value]}) as tx:
        number = renewals.create(tx, current.ref, current.ref.generation, (KeyRole.GUEK,), KEY_AGREEMENT)
        renewal = renewals.get(tx, number)
    work = Work(speaking, renewal, current, current)
    try:
        with associated(speaking, Pair.of(current)) as client:
            candidates = _exchange(work, client, terms)
        verify(work, _proved(work, candidates))
        if prove_refusal:
            prove_old_refused(work)
    except (RefusedError, TransportError, ProtocolError, IntegrityError) as error:
        leave(work, error)
    return put_in_force(work, wait)


def _exchange(work: Work, client: Client, terms: Terms) -> list[KeySet]:
    """Exchange points, and commit the key under each AlgorithmID before the ephemeral pair is gone."""
    with make_ephemeral_pair(work.party.vault, int(terms.suite)) as pair:
        share = PublicShare.sign(terms.suite, KeyId.GUEK, pair.point, terms.signer)
        intent = _begin(work)
        answer = client.action(_method(work.speaking.model), agreement.encode_key_agreement([share]))
        theirs = _their_share(answer, terms, pair.point)
        return _keep(work, intent, [_derive(work.party, pair, theirs, info) for info in terms.infos])


def _begin(work: Work) -> int:
    place = work.current.ref
    with work.party.store.begin("key-agreement", work.title, {"stage": KEY_AGREEMENT}) as tx:
        above = key_sets.next_generation(tx, place.system_title, place.security_setup, place.client)
        work.advance(tx, RenewalState.SENT)
        return intents.open(tx, place.system_title, KEY_AGREEMENT, {"renewal": work.renewal.id, "from": above})


def _their_share(answer: Data | None, terms: Terms, own_point: bytes) -> PublicShare:
    """Read the meter's point; ProtocolError where it is not for our key, IntegrityError where it is not the meter's."""
    if answer is None:
        raise ProtocolError("the meter answered key_agreement without its own point")
    (theirs, *rest) = agreement.decode_key_agreement(terms.suite, answer)
    if rest or theirs.key_id is not KeyId.GUEK:
        raise ProtocolError("the meter's answer to key_agreement is for another key")
    theirs.check(terms.suite, terms.verifier)
    if theirs.point == own_point:
        raise IntegrityError("the meter answered key_agreement with our own point")
    return theirs


def _derive(party: Party, pair: EphemeralPair, theirs: PublicShare, info: bytes) -> StoredKey:
    with agree_dlms(party.vault, pair, theirs.point, info, KeyRole.GUEK) as key:
        return StoredKey(KeyRole.GUEK, party.vault.random(IDENTITY_OCTETS), party.vault.seal(key).wrapped)


def _keep(work: Work, intent: int, derived: list[StoredKey]) -> list[KeySet]:
    """Commit one generation for each key derived, and that the meter answered, in one transaction."""
    rest = carried(work.party, work.current, set(ROLE_NUMBERS) - {KeyRole.GUEK})
    with work.party.store.begin("key-agreement-outcome", work.title, {"outcome": "acknowledged"}) as tx:
        candidates = []
        for key in derived:
            keys = {**rest, KeyRole.GUEK: key}
            candidates.append(add_generation(tx, work.speaking, work.current, keys, KeyState.PRE_ACTIVE))
            begin_counter(tx, work.speaking, work.current, candidates[-1])
        renewals.lead_to(tx, work.renewal.id, candidates[0].ref.generation)
        work.advance(tx, RenewalState.ACKNOWLEDGED)
        intents.outcome(tx, intent, "acknowledged")
    return candidates


def _method(model: MeterModel) -> MethodRef:
    name = LogicalName.parse(model.security_setup.logical_name)
    return MethodRef(security_setup.CLASS_ID, name, security_setup.Method.KEY_AGREEMENT)


def _proved(work: Work, candidates: Sequence[KeySet]) -> KeySet:
    found = first_that_associates(work, candidates)
    if found is None:
        raise IntegrityError("the meter associates under neither key that was derived")
    return found


def _spend_nothing(_work: Work, _what: str) -> None:
    """Let the associations of the renewal itself count as no attempts on a meter in doubt."""


def first_that_associates(
    work: Work, candidates: Sequence[KeySet], spend: Callable[[Work, str], None] = _spend_nothing
) -> KeySet | None:
    """Associate under each generation in turn, and give the first that the meter proves; what fails is recorded."""
    for candidate in candidates:
        what = f"guek {candidate.ref.generation}"
        try:
            with associated(work.speaking, Pair.of(candidate), partial(spend, work, what)):
                work.refused_in_a_row = 0
                return candidate
        except (MeterRefusedError, IntegrityError, ProtocolError, TransportError) as error:
            note_refusal(work, what, error.message)
    return None


def verify(work: Work, found: KeySet) -> None:
    """Record which generation the meter proved, and destroy the others that this renewal made."""
    others = [item for item in candidates_of(work) if item.ref != found.ref]
    with work.party.store.begin("renewal-verified", work.title, {"generation": found.ref.generation}) as tx:
        renewals.lead_to(tx, work.renewal.id, found.ref.generation)
        work.advance(tx, RenewalState.VERIFIED)
        for other in others:
            key_sets.destroy(tx, other.ref)
    work.fresh = found


def candidates_of(work: Work) -> list[KeySet]:
    """List the generations that this renewal made and that the meter may hold: the one it leads to first."""
    place = work.current.ref
    with work.party.store.read() as tx:
        begun = intents.listing(tx, place.system_title, KEY_AGREEMENT)
        first = [int(str(item.detail["from"])) for item in begun if item.detail["renewal"] == work.renewal.id]
        held = key_sets.generations(tx, place.system_title, place.security_setup, place.client)
        found = [key_sets.get(tx, replace(place, generation=item)) for item in held if first and item >= min(first)]
        found = [item for item in found if key_states.state(tx, item.ref) in MAY_BE_HELD]
    return sorted(found, key=lambda item: item.ref.generation != work.renewal.to_generation)


def put_in_force(work: Work, wait: int) -> Outcome:
    """Put the proved generation in force and give it to the meter's concentrator, if that holds keys."""
    outcome = complete(work)
    try:
        activate(work.party, [(work.speaking, work.fresh)], wait)
    except (RefusedError, PartlyDoneError) as error:
        return replace(outcome, error=error)
    return outcome


def leave(work: Work, error: HsmkmError) -> None:
    """Record where a failed agreement stands, and raise: InDoubtError once anything was sent."""
    if work.renewal.state is RenewalState.PREPARED:
        with work.party.store.begin("renewal-abandon", work.title, {"reason": error.message}) as tx:
            work.advance(tx, RenewalState.ABANDONED)
        raise error
    mark_unknown(work, error.message)
    raise InDoubtError(
        f"the keys of meter {work.title} are in doubt after {KEY_AGREEMENT}: {error.message}",
        hint=f"find out what the meter holds, and else take the way back, with: hsmkm resolve {work.title}",
    ) from error


def mark_unknown(work: Work, reason: str) -> None:
    """Record that what the meter holds is not known."""
    with work.party.store.begin("renewal-unknown", work.title, {"reason": reason}) as tx:
        work.advance(tx, RenewalState.UNKNOWN)
        close_intents(tx, work.speaking.meter.system_title)


def by_agreement(renewal: Renewal) -> bool:
    """Tell whether a renewal is one by key_agreement."""
    return renewal.stage == KEY_AGREEMENT


def may_be_locked(renewal: Renewal) -> bool:
    """Tell whether the meter of a renewal may be under a key that nobody here knows."""
    return by_agreement(renewal) and renewal.state not in FINISHED
