"""Step 6: new keys into a meter, one stage after the other, each durable before the meter can hold it.

A renewal leads from the generation in force (`current`) to a new one (`fresh`). Its stages are the key transfers of
the meter's model: the global keys in one array or key by key, under the current master key; the master key alone, once
GUEK and GAK are verified; and then the fresh GBEK, unused till then, under the fresh master key, which proves that one.
An LLS or HLS secret comes last, alone, through the association object.

| state        | what is true                                   | what comes next                                |
|--------------|------------------------------------------------|------------------------------------------------|
| prepared     | fresh generation committed, nothing sent       | sent; abandoned if no association comes about  |
| sent         | committed before the first octet of a transfer | acknowledged; unknown on any other answer      |
| acknowledged | the meter said yes                             | verified; sent (the next stage); unknown       |
| verified     | a new association, or the probe, proved it     | sent (the next stage); active                  |
| active       | fresh in force, current deactivated            | -                                              |
| unknown      | what the meter holds is not known              | `resolve`: verified, or abandoned and recorded |
| abandoned    | what the meter holds is recorded               | a new renewal, with fresh keys                 |

A GUEK that was sent is never sent again: a meter that resets its counter on a key transfer would then accept recorded
traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from hsmkm.dlms import security_setup
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.security_setup import KeyTransfer
from hsmkm.dlms.types import KeyId, LogicalName, MethodRef
from hsmkm.errors import (
    HsmkmError,
    InputError,
    IntegrityError,
    PartlyDoneError,
    ProtocolError,
    RefusedError,
    TransportError,
)
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.meter_model import MeterModel
from hsmkm.steps.communicate import (
    Conversation,
    associated,
    conversation,
    find_meter,
    initial_key_set,
)
from hsmkm.steps.credentials import Pair, new_key, open_key, secret_roles
from hsmkm.steps.distribute import ACTIVATION, activate, announce, owe_activation
from hsmkm.steps.group_members import own_roles, refuse_left, resealed
from hsmkm.steps.into_force import refuse_part, switch
from hsmkm.steps.notices import NOTICE
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.results import Outcome
from hsmkm.steps.secret_change import secret_request
from hsmkm.steps.stages import Stage, plan, with_probe
from hsmkm.steps.stored_counters import LEASE_SECONDS, look_ahead
from hsmkm.store import counters, in_force, intents, key_sets, leases, renewals, urgent
from hsmkm.store.groups import GroupKeys
from hsmkm.store.key_set import IDENTITY_OCTETS, ROLE_NUMBERS
from hsmkm.store.key_sets import KeySet, StoredKey
from hsmkm.store.key_states import KeyState
from hsmkm.store.renewals import Renewal, RenewalState
from hsmkm.store.store import Transaction
from hsmkm.token.types import KeyRole, MeterRole, SecretRole, Use

KEY_IDS: Mapping[MeterRole, KeyId] = {
    KeyRole.GUEK: KeyId.GUEK,
    KeyRole.GBEK: KeyId.GBEK,
    KeyRole.GAK: KeyId.GAK,
    KeyRole.MASTER: KeyId.MASTER,
}
GLOBAL_KEYS = (KeyRole.GUEK, KeyRole.GAK, KeyRole.GBEK)
ALL_KEYS = (*GLOBAL_KEYS, KeyRole.MASTER)
KEY_TRANSFER = "key-transfer"
RECEIPT_SECONDS = 60
TRANSFER_BLOCKS = 8
"""Blocks of the old GUEK's counter that its last associations may still use before the fresh one takes over."""

OF_ONE_METER = (RefusedError, InputError, TransportError, ProtocolError, IntegrityError, PartlyDoneError)
"""Errors that keep nobody from the next meter; any other is that of the token, the store or the party."""

SLICE = 100
"""Meters whose keys travel to their concentrator in one package, and whose leases are held together."""


class InDoubtError(PartlyDoneError):
    """What a meter holds is not known; nothing is lost, and `resolve` finds out."""


@dataclass(slots=True)
class Work:
    """A renewal under way: the conversation, both generations and the stages."""

    speaking: Conversation
    renewal: Renewal
    current: KeySet
    fresh: KeySet
    refused_in_a_row: int = 0
    proved: bool = False
    """Whether an association, or the probe, proved the last stage, and no transaction says so yet."""

    @property
    def party(self) -> Party:
        """The party at work."""
        return self.speaking.party

    @property
    def reached(self) -> int:
        """The place of the renewal's stage; RefusedError where the model's settings were changed under way."""
        names = [stage.name for stage in self.stages]
        if self.renewal.stage not in names:
            raise RefusedError(
                f"model {self.speaking.model.name} has no stage {self.renewal.stage} any more",
                hint="give the model the key_transfer settings back that the renewal began with, and resolve again",
            )
        return names.index(self.renewal.stage)

    @property
    def title(self) -> str:
        """The meter's system title as text."""
        return self.speaking.meter.system_title.hex().upper()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order."""
        return plan(self.speaking.model, self.renewal.roles)

    def outcome(self, state: str, key_set: KeySet, detail: str) -> Outcome:
        """Say how the work ended."""
        return Outcome(self.title, state, key_set.ref.generation, detail, association=self.speaking.association)

    def advance(self, tx: Transaction, state: RenewalState, stage: str | None = None) -> None:
        """Move the renewal on within a transaction, which makes durable what led to it."""
        self.speaking.settle(tx)
        self.renewal = renewals.advance(tx, self.renewal.id, state, self.renewal.stage if stage is None else stage)


def renew(
    party: Party,
    names: Sequence[str],
    roles: tuple[MeterRole, ...],
    association: str = "",
    *,
    prove_refusal: bool = False,
    wait: int = RECEIPT_SECONDS,
) -> list[Outcome]:
    """Renew keys of meters; one whose state is unknown afterwards is for `resolve` to finish.

    The keys of one association are renewed, by name or the first. `wait` is how many seconds a concentrator that holds
    keys has for each of its receipts. A meter that fails has its error in its outcome, and the others go on.
    """
    outcomes: list[Outcome] = []
    for start_at in range(0, len(names), SLICE):
        with ExitStack() as held:
            works = []
            for name in names[start_at : start_at + SLICE]:
                with failing(outcomes, name, association):
                    works.append(_begin(party, held, name, roles, association))
            outcomes += carry_out(party, works, prove_refusal=prove_refusal, wait=wait)
    return outcomes


@contextmanager
def failing(outcomes: list[Outcome], name: str, association: str = "") -> Iterator[None]:
    """Turn an error of one meter, or of one association of it, into its outcome."""
    try:
        yield
    except OF_ONE_METER as error:
        state = "unknown" if isinstance(error, InDoubtError) else "failed"
        outcomes.append(Outcome(name, state, 0, error.message, error, association))


def _begin(party: Party, held: ExitStack, name: str, roles: tuple[MeterRole, ...], association: str) -> Work:
    speaking = held.enter_context(conversation(party, find_meter(party, name), association))
    with party.store.at_one_moment():
        refuse_unfinished(speaking)
        current, wanted = current_key_set(speaking), with_probe(speaking.model, own_roles(speaking, roles))
    return prepare(speaking, current, wanted)


def refuse_unfinished(speaking: Conversation) -> None:
    """Raise RefusedError where an earlier renewal in this association of the meter did not end."""
    open_ones = open_renewals(speaking)
    if open_ones:
        text = speaking.meter.title
        raise RefusedError(
            f"renewal {open_ones[-1].id} of {text} is not finished: {open_ones[-1].state}",
            hint=f"finish it with: hsmkm resolve {text}",
        )


def open_renewals(speaking: Conversation) -> list[Renewal]:
    """List the renewals in this association of the meter that did not end, oldest first."""
    with speaking.party.store.read() as tx:
        found = renewals.unfinished(tx, speaking.meter.system_title)
    return [item for item in found if item.place == speaking.model.place]


def current_key_set(speaking: Conversation) -> KeySet:
    """Give the generation that the meter holds: the active one, or the compromised one that is to be replaced.

    Where none was ever active, those are the model's initial keys.
    """
    with speaking.party.store.read() as tx:
        place = speaking.meter.system_title, *speaking.model.place
        found = key_sets.active(tx, *place) or in_force.compromised(tx, *place)
    return found or initial_key_set(speaking.party, speaking.meter, speaking.model)


def shares_keys(key_set: KeySet, other: KeySet) -> bool:
    """Tell whether two generations have a key in common."""
    return not {key.identity for key in key_set.keys}.isdisjoint(key.identity for key in other.keys)


def was_sent(speaking: Conversation, key_set: KeySet) -> bool:
    """Tell whether a key transfer of this generation was ever begun; a record without a place counts for each."""
    wanted = {**speaking.place, "generation": key_set.ref.generation}
    with speaking.party.store.read() as tx:
        begun = intents.listing(tx, speaking.meter.system_title, KEY_TRANSFER)
    return any(wanted.items() <= {**speaking.place, **item.detail}.items() for item in begun)


def prepare(
    speaking: Conversation, current: KeySet, roles: tuple[MeterRole, ...], shared: GroupKeys | None = None
) -> Work:
    """Make the fresh generation in the token and commit it, before anything is sent; `shared` keys are the group's."""
    party, vault = speaking.party, speaking.party.vault
    made: dict[MeterRole, StoredKey] = {} if shared is None else resealed(party, current.suite, shared)
    for role in (role for role in roles if role not in made):
        with new_key(party, speaking.model, role, current.suite) as key:
            made[role] = StoredKey(role, vault.random(IDENTITY_OCTETS), vault.seal(key).wrapped)
    keys = {**carried(party, current, set(ROLE_NUMBERS) - set(roles)), **made}
    title = speaking.meter.system_title.hex().upper()
    with party.store.begin("renewal-prepare", title, {"roles": [role.value for role in roles]}) as tx:
        refuse_part(tx, current, roles)
        if shared is not None:
            refuse_left(tx, current.ref, shared)
        fresh = add_generation(tx, speaking, current, keys, KeyState.PRE_ACTIVE)
        begin_counter(tx, speaking, current, fresh)
        look_ahead(tx, speaking, current)
        renewal = start(tx, speaking, current, fresh, roles)
    return Work(speaking, renewal, current, fresh)


def start(
    tx: Transaction, speaking: Conversation, current: KeySet, fresh: KeySet, roles: tuple[MeterRole, ...]
) -> Renewal:
    """Record a renewal from one generation to another as prepared."""
    first = plan(speaking.model, roles)[0].name
    return renewals.get(tx, renewals.create(tx, current.ref, fresh.ref.generation, roles, first))


def carried(party: Party, source: KeySet, roles: set[MeterRole]) -> dict[MeterRole, StoredKey]:
    """Copy keys into a new generation with their identities, sealed under the newest storage key."""
    newest = party.vault.storage_key
    found = {}
    for role in sorted(role for role in roles if source.has(role)):
        stored = source.key(role)
        if source.storage_key != newest:
            with open_key(party, source, role, Use.TRANSPORT) as key:
                stored = replace(stored, wrapped=party.vault.seal(key).wrapped)
        found[role] = stored
    return found


def add_generation(
    tx: Transaction, speaking: Conversation, suite_of: KeySet, keys: Mapping[MeterRole, StoredKey], state: KeyState
) -> KeySet:
    """Store a new generation of the meter's keys, above every one held."""
    meter = speaking.meter
    made = KeySet(
        ref=speaking.ref(key_sets.next_generation(tx, meter.system_title, speaking.setup, speaking.client)),
        suite=suite_of.suite,
        storage_key=speaking.party.vault.storage_key,
        state=state,
        keys=tuple(keys[role] for role in sorted(keys)),
        batch=tx.sequence,
    )
    made = key_sets.authenticate(speaking.party.vault, made, meter)
    key_sets.add(tx, made)
    return made


def begin_counter(tx: Transaction, speaking: Conversation, current: KeySet, fresh: KeySet) -> None:
    """Start the fresh GUEK's counter where the meter expects it: above the current one's, unless it restarts.

    The first block is for the next association under it.
    """
    old, new = current.key(KeyRole.GUEK), fresh.key(KeyRole.GUEK)
    if old.identity == new.identity or speaking.model.counter.reset_on_key_change:
        return
    counter = counters.current(tx, old.identity, speaking.client_title)
    if counter is None:
        return
    block = speaking.party.settings.dlms.counter_block
    value = min(counter.next + TRANSFER_BLOCKS * block, counters.LAST - block + 1)
    speaking.ahead.reserved[new.identity] = counters.reserve(
        tx, new.identity, speaking.client_title, block, speaking.lease, begin_at=value
    )


def carry_out(
    party: Party, works: Sequence[Work], *, prove_refusal: bool = False, wait: int = RECEIPT_SECONDS
) -> list[Outcome]:
    """Tell each concentrator, switch the meters behind it, and tell it again; one that fails stops its own only."""
    groups: dict[str | None, list[Work]] = {}
    for work in works:
        groups.setdefault(work.speaking.meter.concentrator, []).append(work)
    outcomes: list[Outcome] = []
    for group in groups.values():
        outcomes += _carry_out_behind_one(party, group, prove_refusal=prove_refusal, wait=wait)
    return outcomes


def _carry_out_behind_one(party: Party, works: Sequence[Work], *, prove_refusal: bool, wait: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    try:
        announce(party, [(work.speaking, work.fresh) for work in works], wait)
    except (RefusedError, PartlyDoneError) as error:
        for work in works:
            with failing(outcomes, work.title, work.speaking.association):
                _leave(work, error)
        return outcomes
    done: list[Work] = []
    for work in works:
        with failing(outcomes, work.title, work.speaking.association):
            outcomes.append(_switch_meter(work, prove_refusal=prove_refusal))
            done.append(work)
    try:
        activate(party, [(work.speaking, work.fresh) for work in done], wait)
    except (RefusedError, PartlyDoneError) as error:
        outcomes = [replace(item, error=error) if item.error is None else item for item in outcomes]
    return outcomes


def _switch_meter(work: Work, *, prove_refusal: bool) -> Outcome:
    """Send every stage and prove it; a failure after the first octet leaves the renewal unknown."""
    try:
        _run_stages(work)
        if prove_refusal:
            _record_proof(work)
            prove_old_refused(work)
    except (RefusedError, TransportError, ProtocolError, IntegrityError) as error:
        _leave(work, error)
    return complete(work)


def _run_stages(work: Work) -> None:
    speaking = replace(work.speaking, defers=True)
    pair = Pair.of(work.current)
    last: Stage | None = None
    for stage in work.stages:
        with associated(speaking, pair) as client:
            if last is not None and last.proved_by_association:
                work.proved = True
                _record_proof(work)
            _send(work, client, stage)
        pair, last = stage.pair_after(pair, work.fresh), stage
    if last is not None and last.proved_by_association:
        with associated(speaking, pair):
            pass
    work.proved = True


def _record_proof(work: Work) -> None:
    if work.proved:
        with work.party.store.begin("renewal-verified", work.title, {"stage": work.renewal.stage}) as tx:
            work.advance(tx, RenewalState.VERIFIED)
        work.proved = False


def _send(work: Work, client: Client, stage: Stage) -> None:
    send = _request(work, stage)
    detail = {**work.speaking.place, "stage": stage.name, "generation": work.fresh.ref.generation}
    with work.party.store.begin("key-transfer", work.title, detail) as tx:
        leases.renew(tx, work.speaking.lease, LEASE_SECONDS, utc_now())
        work.advance(tx, RenewalState.SENT, stage.name)
        intent = intents.open(tx, work.speaking.meter.system_title, KEY_TRANSFER, detail)
    send(client)
    with work.party.store.begin("key-transfer-outcome", work.title, {**detail, "outcome": "acknowledged"}) as tx:
        work.advance(tx, RenewalState.ACKNOWLEDGED)
        intents.outcome(tx, intent, "acknowledged")


def _request(work: Work, stage: Stage) -> Callable[[Client], object]:
    (first, *_) = stage.roles
    if isinstance(first, SecretRole):
        return secret_request(work.party, work.fresh, first)
    payload = transfer_payload(work.party, work.fresh, stage.roles, work.fresh if stage.under_fresh else work.current)
    return lambda client: client.action(key_transfer_method(work.speaking.model), payload)


def key_transfer_method(model: MeterModel) -> MethodRef:
    """Name key_transfer of the model's Security Setup object."""
    name = LogicalName.parse(model.security_setup.logical_name)
    return MethodRef(security_setup.CLASS_ID, name, security_setup.Method.KEY_TRANSFER)


def transfer_payload(party: Party, fresh: KeySet, roles: tuple[MeterRole, ...], master_of: KeySet) -> Data:
    """Wrap keys under a generation's master key, as key_transfer takes them."""
    with open_key(party, master_of, KeyRole.MASTER, Use.IN_USE) as master:
        wrapped = []
        for role in roles:
            with open_key(party, fresh, role, Use.TRANSPORT) as key:
                wrapped.append(KeyTransfer(KEY_IDS[role], party.vault.wrap(master, key)))
    return security_setup.encode_key_transfer(wrapped)


def prove_old_refused(work: Work) -> None:
    """Associate under the keys that are no longer in force: a meter that still accepts them did not change them."""
    changed: tuple[MeterRole, ...] = (KeyRole.GUEK, *secret_roles(work.speaking.model))
    if all(work.current.key(role) == work.fresh.key(role) for role in changed):
        return
    if _old_accepted(work):
        raise IntegrityError(f"meter {work.title} still accepts the old keys", hint="ask the meter's maker")
    with work.party.store.begin("old-keys-refused", work.title, {"generation": work.current.ref.generation}):
        pass


def _old_accepted(work: Work) -> bool:
    accepted = False
    try:
        with associated(work.speaking, Pair.of(work.current)):
            accepted = True
    except (MeterRefusedError, ProtocolError, IntegrityError) as error:
        with work.party.store.begin("old-keys-answer", work.title, {"answer": error.message}):
            pass
    except TransportError:
        if not accepted:
            meter_answers(work.speaking)
    return accepted


def _leave(work: Work, error: HsmkmError) -> None:
    """Record where a failed renewal stands, and raise."""
    if work.renewal.state is RenewalState.PREPARED:
        with work.party.store.begin("renewal-abandon", work.title, {"reason": error.message}) as tx:
            work.advance(tx, RenewalState.ABANDONED)
        raise error
    with work.party.store.begin("renewal-unknown", work.title, {"reason": error.message}) as tx:
        work.advance(tx, RenewalState.UNKNOWN)
        close_intents(tx, work.speaking.meter.system_title)
    raise InDoubtError(
        f"the keys of meter {work.title} are in doubt after stage {work.renewal.stage}: {error.message}",
        hint=f"nothing is lost; find out what the meter holds with: hsmkm resolve {work.title}",
    ) from error


def close_intents(tx: Transaction, system_title: bytes) -> None:
    """Say of every intent that has no outcome that it is not known."""
    for intent in intents.unfinished(tx, system_title):
        if intent.action not in (ACTIVATION, NOTICE):
            intents.outcome(tx, intent.id, "unknown")


def complete(work: Work) -> Outcome:
    """Put the fresh generation in force, in one transaction, which also records the proof where none did."""
    detail = {"generation": work.fresh.ref.generation} | ({"verified": work.renewal.stage} if work.proved else {})
    with work.party.store.begin("renewal-active", work.title, detail) as tx:
        if work.proved:
            work.advance(tx, RenewalState.VERIFIED)
        usable = switch(tx, work.current, work.fresh)
        work.advance(tx, RenewalState.ACTIVE)
        if usable:
            owe_activation(tx, work.speaking, work.fresh.ref.generation)
            urgent.settle(tx, work.fresh.ref, work.renewal.roles)
    if not usable:
        text = "the meter took the keys, which were declared compromised meanwhile"
        error = PartlyDoneError(text, hint="replace them with: hsmkm renew --urgent")
        return replace(work.outcome("compromised", work.fresh, text), error=error)
    return work.outcome("active", work.fresh, said_of(work.renewal.roles))


def said_of(roles: tuple[MeterRole, ...]) -> str:
    """Say which keys are proved, and that of the GBEK only the meter's word is there: nothing it answers shows it."""
    proved = ", ".join(role.value for role in roles if role is not KeyRole.GBEK)
    found = [f"renewed and verified: {proved}"] if proved else []
    return "; ".join([*found, "acknowledged: gbek"] if KeyRole.GBEK in roles else found)


def meter_answers(speaking: Conversation) -> None:
    """Raise TransportError where not even a link comes about, before an attempt on the meter's keys is spent."""
    with speaking.dial():
        pass
