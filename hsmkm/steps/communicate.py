"""Step 7: every exchange with a meter is authenticated and encrypted under the keys that the store calls active.

A conversation holds the meter's lease. Its invocation counters come from the store's allocator, durable before use;
what the meter tells through the public client (0.0.43.1.x.255, in clear) is tried as a hint and believed only after an
authenticated answer. Receive counters are durable, so an older answer replayed is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from hsmkm.config import load_model
from hsmkm.dlms.agreement import AlgorithmIds
from hsmkm.dlms.association import Association
from hsmkm.dlms.channel import Form, Traffic
from hsmkm.dlms.general_keys import KeyChoice
from hsmkm.dlms.settings import AssociationSettings
from hsmkm.dlms.types import AttributeRef, LogicalName, Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import InputError, ProtocolError, RefusedError, TransportError
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.link.tcp import ApduLink, TcpLink
from hsmkm.link.tls import TlsLink, client_context
from hsmkm.meter_model import MeterModel
from hsmkm.steps.credentials import Credentials, Pair, credentials, policy_of, proves_keys
from hsmkm.steps.general_keys import CHOICES, StoredTransactions, Terms, general_keys
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.resting import refuse_resting
from hsmkm.steps.results import Reading
from hsmkm.steps.stored_counters import (
    LEASE_SECONDS,
    Ahead,
    StoredCounter,
    StoredReceiveCounter,
    heard_under,
    next_value_of,
)
from hsmkm.steps.suspicions import refusals_recorded
from hsmkm.steps.unreturned import Unreturned
from hsmkm.store import counters, in_force, key_sets, leases, meters, models, parties
from hsmkm.store.key_sets import KeySet, KeySetRef
from hsmkm.store.leases import Lease
from hsmkm.store.meters import Meter
from hsmkm.store.store import Transaction
from hsmkm.token.ckr import LOST
from hsmkm.token.types import KeyRole

CHALLENGE_OCTETS = 16
MAX_HINTS = 2
"""How often a refused association asks the meter for its counter, which another client under the same GUEK may raise
between the question and the next attempt."""
ENDED = ("Z", "X")
"""States of a process that has ended and is not yet waited for (proc(5))."""

DATA_CLASS = 1
VALUE_ATTRIBUTE = 2
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)

_unreturned = Unreturned()

Dial = Callable[[], AbstractContextManager[ApduLink]]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One meter under one lease: who speaks, what the meter is, in which association, and how it is reached.

    `model` is that of the association: its client, its Security Setup, and all that follows from them.
    """

    party: Party
    meter: Meter
    model: MeterModel
    lease: Lease
    dial: Dial
    is_first: bool = True
    ahead: Ahead = field(default_factory=Ahead)
    defers: bool = False
    """Whether the meter's counters become durable with the next transaction of the work (`settle`), and not at once."""

    @property
    def association(self) -> str:
        """The name of the association; empty where the meter has just one."""
        return self.model.association_name if self.model.others else ""

    @property
    def place(self) -> dict[str, object]:
        """The association as records of what is done name it."""
        return {"security_setup": self.setup, "client": self.client}

    @property
    def setup(self) -> int:
        """The number of the Security Setup whose keys are in force in the association."""
        return self.model.security_setup.number

    @property
    def client(self) -> int:
        """Our service access point: the client of the association."""
        return self.model.addressing.client_sap

    @property
    def client_title(self) -> bytes:
        """Our own system title, half of every IV we make."""
        return bytes.fromhex(self.party.settings.party.system_title)

    def ref(self, generation: int) -> KeySetRef:
        """Name a generation of this association's key sets."""
        return KeySetRef(self.meter.system_title, self.setup, self.client, generation)

    def settle(self, tx: Transaction) -> None:
        """Make durable what the meter's counters have risen to since the last time.

        Together with, or before, all that follows from its answers; IntegrityError where another took them meanwhile.
        """
        while self.ahead.heard:
            identity, (first, last) = self.ahead.heard.popitem()
            counters.accept_received(tx, identity, self.meter.system_title, first, last)


def find_meter(party: Party, name: str) -> Meter:
    """Find a meter by system title or serial number; InputError where there is none."""
    with party.store.read() as tx:
        return meters.find(tx, name)


@contextmanager
def conversation(
    party: Party, meter: Meter, association: str = "", reach: Dial | None = None, *, enrolling: bool = False
) -> Iterator[Conversation]:
    """Take the meter's lease for one piece of work in an association of its model, by name or the first.

    `enrolling`: as the model says that a meter without certificates is spoken to; only where it may have none.
    `reach` opens the link where the meter is not reached by its address or concentrator.
    Raises RefusedError while another process holds the lease, InputError where there is no such association.
    """
    whole = load_model(meter.model, party.home)
    model = whole.association(association)
    with _leased(party, meter, (model.enrolling if enrolling else model,), whole.place, reach) as (speaking,):
        yield speaking


@contextmanager
def conversations(party: Party, meter: Meter) -> Iterator[tuple[Conversation, ...]]:
    """Take the meter's lease for work in every association of its model; RefusedError as `conversation`."""
    whole = load_model(meter.model, party.home)
    every = tuple(whole.association(name) for name in whole.associations)
    with _leased(party, meter, every, whole.place) as speaking:
        yield speaking


@contextmanager
def _leased(
    party: Party, meter: Meter, every: tuple[MeterModel, ...], first: tuple[int, int], reach: Dial | None = None
) -> Iterator[tuple[Conversation, ...]]:
    lease = _take_lease(party, meter)
    held: tuple[Conversation, ...] = ()
    try:
        reached = reach or dial(party, meter)
        held = tuple(Conversation(party, meter, model, lease, reached, model.place == first) for model in every)
        yield held
    except BaseException:
        with suppress(*LOST):  # it follows from what failed first, which the caller must hear of
            _give_back(party, meter, lease, held)
        raise
    _give_back(party, meter, lease, held)


def _give_back(party: Party, meter: Meter, lease: Lease, held: tuple[Conversation, ...]) -> None:
    """Make counters durable and give the lease back; the lease alone where the token, lost, makes no MAC for them."""
    try:
        with _noted(party, meter), party.store.count() as tx:
            for speaking in held:
                speaking.settle(tx)
            leases.release(tx, lease)
    except LOST:
        with party.store.count() as tx:
            leases.release(tx, lease)
        raise


def _take_lease(party: Party, meter: Meter) -> Lease:
    """Take the meter's lease; one that a process of this host left behind, or this one could not give back, is free."""
    store, title = party.settings.store_url, meter.system_title

    def is_free(holder: str) -> bool:
        return is_gone(holder) or (holder == this_process() and _unreturned.take(store, title))

    with ExitStack() as stack:
        with party.store.count() as tx:
            refuse_resting(meters.require(tx, title))
            lease = leases.acquire(tx, title, this_process(), LEASE_SECONDS, utc_now(), is_free)
            _unreturned.take(store, title)
            stack.enter_context(_noted(party, meter))  # from here on only the commit can fail
        return lease


@contextmanager
def _noted(party: Party, meter: Meter) -> Iterator[None]:
    """Take note of a lease that stays behind, where the block fails."""
    try:
        yield
    except BaseException:
        _unreturned.add(party.settings.store_url, meter.system_title)
        raise


def this_process() -> str:
    """Name this process so that another on the same host can tell whether it still runs: host, number, start."""
    return f"{_host()}:{os.getpid()}:{_started(str(os.getpid()))}"


def is_gone(holder: str) -> bool:
    """Tell whether a holder was a process of this host that has ended, killed or not; False where nobody can know."""
    place, _, started = holder.rpartition(":")
    host, _, number = place.rpartition(":")
    if host != _host() or not number.isdecimal():
        return False
    return _started(number) != started


@cache
def _host() -> str:
    """Name where the numbers of processes mean the same: this run of the system, and this namespace of processes.

    Containers and machines may share a name, and a process of one is not seen from the other.
    """
    try:
        run = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        seen = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{hashlib.sha256(f'{run} {seen}'.encode()).hexdigest()[:12]}"


def _started(number: str) -> str:
    """Give a process's start in clock ticks since boot (proc(5), field 22 of stat); empty where it has ended."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in ENDED else fields[19]


def dial(party: Party, meter: Meter) -> Dial:
    """Give what opens a link to the meter: through its concentrator over TLS, or straight by its address."""
    refuse_resting(meter)
    timeout = party.settings.dlms.timeout_seconds
    if meter.concentrator:
        with party.store.read() as tx:
            through = parties.require(tx, meter.concentrator)
        host, port = split_address(through.address or "", f"concentrator {through.name}")
        context = client_context(party.home)
        title = through.system_title.hex().upper() if through.system_title else ""
        return lambda: TlsLink(host, port, context, timeout, title, meter.system_title)
    host, port = split_address(meter.address or "", f"meter {meter.system_title.hex().upper()}")
    return lambda: TcpLink(host, port, timeout)


def split_address(address: str, owner: str) -> tuple[str, int]:
    """Read host:port; InputError names the owner."""
    host, _, port = address.rpartition(":")
    if not host or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:  # noqa: PLR2004 - TCP ports
        raise InputError(f"{owner} has no usable address: {address!r}", hint="give it as host:port")
    return host.strip("[]"), int(port)


def split_listen(address: str) -> tuple[str, int]:
    """Read host:port to listen on; port 0 takes a free one."""
    host, _, port = address.rpartition(":")
    if not host or not _PORT.fullmatch(port) or int(port) > 65535:  # noqa: PLR2004 - TCP ports
        raise InputError(f"{address!r} is not an address to listen on", hint="give it as host:port")
    return host.strip("[]"), int(port)


def _uncounted() -> None:
    """Spend nothing: only the work on a meter in doubt has a limit of attempts."""


@contextmanager
def associated(speaking: Conversation, pair: Pair, spend: Callable[[], None] = _uncounted) -> Iterator[Client]:
    """Associate as the meter's model says, under a pair of keys and the secret, and release at the end.

    `spend` is called before each association that is tried. Raises MeterRefusedError when the meter refuses,
    TransportError when it does not answer, IntegrityError when its answer does not prove the keys. A meter that closes
    the connection instead of answering the release has done all that was asked.
    """
    with refusals_recorded(speaking.party, speaking.meter), ExitStack() as stack:
        opened = credentials(speaking.party, speaking.model, speaking.meter.system_title, pair)
        client = _associate(speaking, pair, stack.enter_context(opened), stack, spend)
        yield client
        _release(speaking, client)


def _release(speaking: Conversation, client: Client) -> None:
    try:
        client.release()
    except (TransportError, ProtocolError, MeterRefusedError) as error:
        with speaking.party.store.begin("release-unanswered", speaking.meter.title, {"answer": error.message}):
            pass


def _associate(
    speaking: Conversation, pair: Pair, opened: Credentials, stack: ExitStack, spend: Callable[[], None]
) -> Client:
    identity = pair.guek.key(KeyRole.GUEK).identity
    counter = StoredCounter(speaking, identity)
    if opened.key is None:
        spend()
        return _attempt(speaking, pair, opened, counter, stack)
    if Form(speaking.model.protection.form) is Form.GENERAL:
        terms = _general_terms(speaking, pair, Traffic(opened.key, counter, StoredReceiveCounter(speaking, identity)))
        opened = replace(opened, general=stack.enter_context(general_keys(speaking.party, terms)))
    lowest = next_value_of(speaking, identity)
    if lowest == 1:
        lowest = _take_hint(speaking, counter, lowest) or lowest
    for _ in range(MAX_HINTS):
        spend()
        try:
            return _attempt(speaking, pair, opened, counter, stack)
        except MeterRefusedError:
            above = _take_hint(speaking, counter, lowest)
            if above is None:
                raise
            lowest = above
    spend()
    return _attempt(speaking, pair, opened, counter, stack)


def _general_terms(speaking: Conversation, pair: Pair, guek: Traffic) -> Terms:
    """Say which key general-ciphering takes: the model's, or the GUEK where keys are changed or in doubt.

    A concentrator has no master key, and so takes the GUEK in place of a wrapped key.
    """
    model, choice, settled = speaking.model, CHOICES[speaking.model.protection.key], pair.settled
    if settled is None or (choice is KeyChoice.WRAPPED and not settled.has(KeyRole.MASTER)):
        choice = KeyChoice.GUEK
    return Terms(
        meter=speaking.meter.system_title,
        suite=pair.guek.suite,
        choice=choice,
        gak=pair.gak,
        master=settled,
        guek=guek,
        counters=lambda identity: (StoredCounter(speaking, identity), StoredReceiveCounter(speaking, identity)),
        algorithms=AlgorithmIds(bytes.fromhex(model.key_agreement.algorithm_id)),
    )


def _attempt(
    speaking: Conversation, pair: Pair, opened: Credentials, counter: StoredCounter, stack: ExitStack
) -> Client:
    settings = _settings(speaking, pair, opened, counter)
    with ExitStack() as own:
        client = Client(own.enter_context(speaking.dial()), Association(settings))
        client.associate()
        if proves_keys(speaking.model):
            counter.authenticated()
        stack.push(own.pop_all())
    return client


def _settings(speaking: Conversation, pair: Pair, opened: Credentials, counter: StoredCounter) -> AssociationSettings:
    model = speaking.model
    return AssociationSettings(
        client_sap=model.addressing.client_sap,
        server_sap=model.addressing.server_sap,
        client_title=SystemTitle(speaking.client_title),
        server_title=SystemTitle(speaking.meter.system_title),
        mechanism=Mechanism(model.authentication.mechanism),
        suite=SecuritySuite(pair.guek.suite),
        key=opened.key,
        counter=counter,
        receive_counter=StoredReceiveCounter(speaking, heard_under(speaking, pair.guek)),
        challenge=secrets.token_bytes(CHALLENGE_OCTETS),
        password=opened.password,
        secret=opened.secret,
        signer=opened.signer,
        verifier=opened.verifier,
        allow_weak_digests=model.authentication.allow_weak_digests,
        policy=policy_of(model),
        form=Form(model.protection.form),
        dedicated=opened.dedicated,
        key_source=opened.general,
        transactions=StoredTransactions(speaking.party, speaking.meter.system_title),
    )


def _take_hint(speaking: Conversation, counter: StoredCounter, lowest: int) -> int | None:
    """Ask the public client for the meter's view of our counter; what comes after it, if that is above `lowest`."""
    hint = read_public_counter(speaking)
    if hint is None or hint < lowest:
        return None
    counter.try_hint(hint)
    return hint + 1


def read_public_counter(speaking: Conversation) -> int | None:
    """Read the invocation counter without security (SAP 16); None where the meter does not tell it."""
    model = speaking.model
    attribute = AttributeRef(DATA_CLASS, LogicalName.parse(model.counter.logical_name), VALUE_ATTRIBUTE)
    settings = AssociationSettings(
        client_sap=model.addressing.public_client_sap, server_sap=model.addressing.server_sap
    )
    with speaking.dial() as link:
        client = Client(link, Association(settings))
        try:
            client.associate()
            value = client.get(attribute).value
        except MeterRefusedError:
            return None
        _release(speaking, client)
    return value if isinstance(value, int) and 0 <= value < 2**32 else None


def active_key_set(party: Party, meter: Meter, model: MeterModel) -> KeySet:
    """Give the verified key set that is in force; RefusedError where none is."""
    with party.store.read() as tx:
        found = key_sets.active(tx, meter.system_title, *model.place)
        lost = found is None and in_force.compromised(tx, meter.system_title, *model.place) is not None
    if lost:
        hint = "they carry nothing but the key_transfer that replaces them: hsmkm renew --urgent"
        raise RefusedError(f"the keys of meter {meter.title} are compromised", hint=hint)
    if found is None:
        title = meter.system_title.hex().upper()
        where = f" in association {model.association_name}" if model.others else ""
        hint = f"see: hsmkm meter show {title}, hsmkm resolve"
        raise RefusedError(f"no active keys for meter {title}{where}", hint=hint)
    return found


def initial_key_set(party: Party, meter: Meter, model: MeterModel) -> KeySet:
    """Give generation 0: the keys that every meter of the model comes with in this association."""
    with party.store.read() as tx:
        return models.initial(tx, meter.model, meter, *model.place, model.association_name)


def read(party: Party, name: str, attributes: tuple[AttributeRef, ...], association: str = "") -> list[Reading]:
    """Read attributes of a meter under its active keys, in an association by name or the first."""
    meter = find_meter(party, name)
    with conversation(party, meter, association) as speaking:
        key_set = active_key_set(party, meter, speaking.model)
        with associated(replace(speaking, defers=True), Pair.in_force(key_set)) as client:
            found = [Reading(attribute, client.get(attribute)) for attribute in attributes]
    title = meter.system_title.hex().upper()
    with party.store.begin("meter-read", title, {"attributes": [str(item) for item in attributes]}):
        return found
