"""A concentrator that holds keys reads its meters by itself, also while the AIM gives them new ones.

The AIM hands over a generation before it switches the meter to it, and the activation afterwards. In between the meter
may have taken all of it, a part, or nothing. So where the active keys are refused, the generations that are newer and
pre-active are tried, the newest first: each as a whole, and then in part. A generation under which an association comes
about as a whole is in force, and recorded as such; a part of it is used for this once. A refusal alone is never
believed: it moves nothing.

Each such attempt is durable before it is made, and bounded in a row (`authentication.failed_limit` of the model) and in
a day (`policy.attempts_per_day`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

from hsmkm.config import load_model
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.types import AttributeRef
from hsmkm.errors import HsmkmError, IntegrityError, ProtocolError, RefusedError, TransportError
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.steps.communicate import Conversation, associated, conversation, find_meter
from hsmkm.steps.credentials import Pair, proves_keys
from hsmkm.steps.follow import put_in_force
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.renew import meter_answers
from hsmkm.steps.results import Reading
from hsmkm.store import intents, key_sets, key_states, meters
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.store.meter import Meter
from hsmkm.token.types import KeyRole, MeterRole, SecretRole

ATTEMPT = "generation-attempt"
DAY = timedelta(days=1)
PAGE = 1000
NOT_BELIEVED = (MeterRefusedError, IntegrityError, ProtocolError, TransportError)
"""What an association under keys that the meter does not have ends with."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a meter gave for one attribute, or why it gave nothing; `generation` is that of the GUEK in use."""

    attribute: AttributeRef
    generation: int
    data: Data | None = field(default=None, repr=False)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Keys that may be in force in a meter, and the generation that an association under them puts in force, if any."""

    pair: Pair
    proved: KeySet | None = None

    @property
    def name(self) -> str:
        """How records name it."""
        pair = self.pair
        return f"guek {pair.guek.ref.generation}, gak {pair.gak.ref.generation}, secret {pair.secret.ref.generation}"


def meter_titles(party: Party) -> list[bytes]:
    """Name every meter of ours that is to be read by system title (8 octets each), in their order."""
    found: list[bytes] = []
    after = b""
    while True:
        with party.store.read() as tx:
            page = meters.listing(tx, after=after, limit=PAGE)
        found += [item.system_title for item in page if item.at_rest is None]
        if len(page) < PAGE:
            return found
        after = page[-1].system_title


def read(party: Party, name: str, attributes: Sequence[AttributeRef], association: str = "") -> list[Reading]:
    """Read attributes of a meter straight from its address; raises as soon as one is refused.

    It is spoken to in an association by name, or the first of which keys are held.
    """
    with _in_force(party, name, association) as (_, client):
        found = [Reading(attribute, client.get(attribute)) for attribute in attributes]
    title = find_meter(party, name).title
    with party.store.begin("meter-read", title, {"attributes": [str(item) for item in attributes]}):
        return found


def measure(party: Party, name: str, attributes: Sequence[AttributeRef]) -> list[Measured]:
    """Read what can be read of a meter; an attribute that it declines has its reason, and the others go on."""
    with _in_force(party, name) as (generation, client):
        return [_measured(client, attribute, generation) for attribute in attributes]


def _measured(client: Client, attribute: AttributeRef, generation: int) -> Measured:
    try:
        return Measured(attribute, generation, client.get(attribute))
    except MeterRefusedError as error:
        return Measured(attribute, generation, error=error.message)


@contextmanager
def _in_force(party: Party, name: str, association: str = "") -> Iterator[tuple[int, Client]]:
    """Associate under the keys that the meter has, and give the generation of its GUEK."""
    meter = find_meter(party, name)
    with conversation(party, meter, association or _association(party, meter)) as speaking, ExitStack() as stack:
        yield _first_accepted(speaking, stack)


def _association(party: Party, meter: Meter) -> str:
    """Name the first association of the meter's model of which keys are held here; the first of all where none are."""
    model = load_model(meter.model, party.home)
    for name in model.associations:
        with party.store.read() as tx:
            if key_sets.generations(tx, meter.system_title, *model.association(name).place):
                return name
    return ""


def _first_accepted(speaking: Conversation, stack: ExitStack) -> tuple[int, Client]:
    refused: HsmkmError | None = None
    for tried, candidate in enumerate(candidates(speaking)):
        if tried >= speaking.model.authentication.failed_limit:
            break
        attempt = _Attempt(speaking, candidate) if tried else None
        try:
            client = stack.enter_context(associated(speaking, candidate.pair, attempt.spend if attempt else _nothing))
        except NOT_BELIEVED as error:
            if isinstance(error, TransportError):
                meter_answers(speaking)
            refused = refused or error
            continue
        if candidate.proved is not None:
            _record(speaking, candidate.proved)
        return candidate.pair.guek.ref.generation, client
    if refused is None:
        raise RefusedError(
            f"no keys of meter {speaking.meter.title} are held here",
            hint="a relay gets none: the AIM gives keys to a concentrator that it knows as a client",
        )
    raise refused


def _nothing() -> None:
    """Spend nothing: the keys in force are used as often as there is something to read."""


def candidates(speaking: Conversation) -> Iterator[Candidate]:
    """Order the keys that may be in force: the active ones, then what a renewal by the AIM may have made of them."""
    place = speaking.ref(0)
    with speaking.party.store.read() as tx:
        held = [
            (key_set, state)
            for key_set, state in key_sets.for_meter(tx, place.system_title)
            if (key_set.ref.security_setup, key_set.ref.client) == (place.security_setup, place.client)
        ]
    active = next((key_set for key_set, state in reversed(held) if state is KeyState.ACTIVE), None)
    if active is not None:
        yield Candidate(Pair.in_force(active))
    if active is not None and not proves_keys(speaking.model):
        return
    newest = active.ref.generation if active else 0
    for key_set, state in reversed(held):
        if state is KeyState.PRE_ACTIVE and key_set.ref.generation > newest:
            yield from _on_the_way(active, key_set)


def _on_the_way(active: KeySet | None, fresh: KeySet) -> Iterator[Candidate]:
    """Give the generation as a whole, and then what a meter may have that took a part of it so far.

    One that differs in nothing that an association proves is left to its activation.
    """
    if active is None:
        yield Candidate(Pair.of(fresh), fresh)
        return
    old, new = Pair.of(active), Pair.of(fresh)
    changed = _changed(active, fresh)
    if changed:
        yield Candidate(new, fresh)
    if {KeyRole.GUEK, KeyRole.GAK} <= changed:
        yield Candidate(replace(old, guek=fresh))
        yield Candidate(replace(old, gak=fresh))
    if changed & set(SecretRole) and changed & {KeyRole.GUEK, KeyRole.GAK}:
        yield Candidate(replace(new, secret=active))


def _changed(active: KeySet, fresh: KeySet) -> set[MeterRole]:
    """Name the keys that an association proves and that the generations do not share."""
    roles: tuple[MeterRole, ...] = (KeyRole.GUEK, KeyRole.GAK, *SecretRole)
    both = [role for role in roles if active.has(role) and fresh.has(role)]
    return {role for role in both if active.key(role).identity != fresh.key(role).identity}


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One try of keys that are not known to be in force."""

    speaking: Conversation
    candidate: Candidate

    def spend(self) -> None:
        """Count it durably before it is made; RefusedError at the day's limit."""
        party, meter = self.speaking.party, self.speaking.meter
        limit, since = party.settings.policy.attempts_per_day, utc_now() - DAY
        with party.store.begin(ATTEMPT, meter.title, {"try": self.candidate.name}) as tx:
            if len(intents.listing(tx, meter.system_title, ATTEMPT, since=since)) >= limit:
                raise RefusedError(
                    f"meter {meter.title} was tried {limit} times in 24 hours with keys that are not in force yet",
                    hint="ask the AIM how its renewal stands, or raise policy.attempts_per_day if the meter bears it",
                )
            intent = intents.open(tx, meter.system_title, ATTEMPT, {"try": self.candidate.name})
            intents.outcome(tx, intent, "tried")


def _record(speaking: Conversation, key_set: KeySet) -> None:
    """Put a pre-active generation in force that an association proved, unless its state was changed meanwhile."""
    detail = {"generation": key_set.ref.generation, "proved by": "association"}
    with speaking.party.store.begin("generation-in-force", speaking.meter.title, detail) as tx:
        if key_states.state(tx, key_set.ref) is KeyState.PRE_ACTIVE:
            put_in_force(tx, key_set.ref)
