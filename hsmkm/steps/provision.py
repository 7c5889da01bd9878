"""Steps 1 and 2: unique key sets for each meter of a production order, and the injection package that carries them.

A meter has one key set for each association of its model. For one of them, in the token: generate 4 keys; wrap 4 for
the store; wrap GUEK, GBEK and GAK under the master key, and the master key under the package key; make the MAC (2
calls); destroy 4. An LLS or HLS secret is one more key. Workers make them in batches (`hsmkm.steps.hands`), and this
process writes what they made. Up to 10,000 key sets make one package, and one transaction holds the meters, their key
sets and the package's record; a crash between two goes on where it stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

from hsmkm.config import load_model
from hsmkm.errors import IntegrityError
from hsmkm.meter_model import MeterModel
from hsmkm.packages.bulk import join
from hsmkm.packages.content import PackageHeader, Purpose
from hsmkm.packages.send import Signatory, close_bulk, open_bulk
from hsmkm.pki.slots import curve_for
from hsmkm.steps.births import Made, make_key_sets
from hsmkm.steps.certify import trust_of
from hsmkm.steps.credentials import secret_roles
from hsmkm.steps.deliver import Parcel, hand_out, header_for, outbox, recipient, signatory
from hsmkm.steps.first_package import check_recipient
from hsmkm.steps.order import OrderedMeter, ProductionOrder, read_order
from hsmkm.steps.party import Party
from hsmkm.steps.results import Provisioned, Sent
from hsmkm.steps.waiting import Waiting, chunks_of, waiting_of
from hsmkm.store import holders, key_sets, meters, orders
from hsmkm.store.key_set import KeyState
from hsmkm.store.key_set_bulk import Form, identities_of, wrapped_of
from hsmkm.store.meter import Meter
from hsmkm.store.orders import Order
from hsmkm.store.store import Transaction
from hsmkm.token.types import KEY_OCTETS, KeyRole, MeterRole, Sealed

FIRST_GENERATION = 1
_KEYS = (KeyRole.MASTER, KeyRole.GUEK, KeyRole.GBEK, KeyRole.GAK)


@dataclass(frozen=True, slots=True)
class Batch:
    """Meters of one model and suite that a worker takes up together."""

    forms: tuple[Form, ...]
    meters: Sequence[OrderedMeter]

    @property
    def pairs(self) -> list[tuple[bytes, str]]:
        """The system title and serial number of each meter."""
        return [(item.system_title.octets, item.serial) for item in self.meters]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A package that was begun: its header and recipient info, and its package key as it was lent to the workers."""

    header: PackageHeader
    sender: Signatory = field(repr=False)
    lent: Sealed = field(repr=False)
    info: bytes
    batches: Sequence[Batch]


def provision(party: Party, path: Path, line: str) -> Provisioned:
    """Provision a production order for a line equipment; an order given again does nothing.

    Raises InputError with every fault of the file, RefusedError where the line equipment may not have it; nothing is
    provisioned then.
    """
    order = read_order(path, lambda name: load_model(name, party.home))
    with outbox(party):
        return _provision(party, order, line)


def _provision(party: Party, order: ProductionOrder, line: str) -> Provisioned:
    known = provisioned(party, order)
    if known is not None:
        return known
    waiting = waiting_of(party, order)
    check_recipient(party, line)
    return finish(party, order, [sent.path for sent in _packages(party, waiting, line)])


def provisioned(party: Party, order: ProductionOrder) -> Provisioned | None:
    """Tell of an order that is done; None of any other."""
    order_id = order.digest.hex()
    with party.store.read() as tx:
        known = orders.get(tx, order_id)
    if known is None or known.state != orders.DONE:
        return None
    return Provisioned(order_id, known.rows, (), already=True)


def finish(party: Party, order: ProductionOrder, files: Sequence[Path]) -> Provisioned:
    """Record that an order is done, with all of its meters made."""
    order_id = order.digest.hex()
    with party.store.begin("order-done", order_id, {"meters": len(order.meters)}) as tx:
        orders.set_state(tx, order_id, orders.DONE)
    return Provisioned(order_id, len(order.meters), tuple(files), already=False)


def forms_of(model: MeterModel, suite: int, order: str) -> tuple[Form, ...]:
    """Give the form of a meter's first key sets, one for each association."""
    return tuple(_form(model.association(name), model.name, suite, order) for name in model.associations)


def _form(association: MeterModel, model: str, suite: int, order: str) -> Form:
    keys: list[tuple[MeterRole, int]] = [(role, KEY_OCTETS[suite]) for role in _KEYS]
    keys += [(role, association.authentication.secret_octets) for role in secret_roles(association)]
    return Form(*association.place, FIRST_GENERATION, model, order, suite, KeyState.PRE_ACTIVE, tuple(keys))


def _packages(party: Party, waiting: Waiting, line: str) -> Iterator[Sent]:
    """Make one package of each chunk; the workers are at the next one while this is recorded."""
    opened: deque[_Opened] = deque()

    def batches() -> Iterator[tuple[object, ...]]:
        for number, chunk in enumerate(chunks_of(waiting)):
            package = _open(party, waiting.order, chunk, line, number)
            opened.append(package)
            for batch in package.batches:
                yield package.lent, batch.forms, batch.pairs

    with closing(party.hands.work(len(waiting), make_key_sets, batches())) as answers:
        for first in answers:
            package = opened.popleft()
            made = [first, *islice(answers, len(package.batches) - 1)]
            yield _record(party, waiting.order, package, made)


def _open(party: Party, order: ProductionOrder, chunk: Sequence[OrderedMeter], line: str, number: int) -> _Opened:
    """Begin the package that comes so many packages after the last one recorded."""
    suites = {item.suite for item in chunk}
    curve = curve_for(suites)
    sender, receiver = signatory(party, curve), recipient(party, line, curve)
    header = header_for(party, Purpose.INJECTION, sender, receiver, after=number)
    lent, info = open_bulk(party.vault, trust_of(party), sender, receiver, header, suites)
    return _Opened(header, sender, lent, info, batches_of(party, order, chunk))


def batches_of(party: Party, order: ProductionOrder, chunk: Sequence[OrderedMeter]) -> list[Batch]:
    """Divide meters into what workers take up together."""
    order_id, size = order.digest.hex(), party.hands.shape.batch
    batches = []
    for (model, suite), group in groupby(sorted(chunk, key=_kind), key=_kind):
        forms, alike = forms_of(order.models[model], suite, order_id), list(group)
        batches += [Batch(forms, alike[start : start + size]) for start in range(0, len(alike), size)]
    return batches


def _kind(item: OrderedMeter) -> tuple[str, int]:
    return item.model, item.suite


def _record(party: Party, order: ProductionOrder, package: _Opened, made: Sequence[tuple[Made, ...]]) -> Sent:
    """Sign the package, and record it with its meters and key sets in one transaction."""
    whole = [one for each in made for one in each]
    refuse_twins(whole)
    content = join(package.header, package.info, [one.entries for one in whole], _probes(whole))
    data = close_bulk(package.sender, package.header, content)
    to, count = package.header.recipient.name, sum(len(batch.meters) for batch in package.batches)

    def also(tx: Transaction) -> None:
        add_made(tx, order, package.batches, made)

    def note_holders(tx: Transaction) -> None:
        holders.add_sets(tx, to, package.header.id, given_to(package.batches, made))

    parcel = Parcel(package.header, count, data, carries_keys=True)
    return hand_out(party, parcel, also, note_holders)


def add_made(
    tx: Transaction, order: ProductionOrder, batches: Sequence[Batch], made: Sequence[tuple[Made, ...]]
) -> None:
    """Add meters with their key sets, and their order if they are its first."""
    order_id = order.digest.hex()
    if orders.get(tx, order_id) is None:
        orders.add(tx, Order(order_id, order.name, len(order.meters)))
    ordered = (item for batch in batches for item in batch.meters)
    new = (Meter(item.system_title.octets, item.serial, item.model, item.suite, order=order_id) for item in ordered)
    meters.add_many(tx, new)
    for batch, each in zip(batches, made, strict=True):
        for one in each:
            titles = [item.system_title.octets for item in batch.meters]
            rows = [(title, *row) for title, row in zip(titles, one.sets, strict=True)]
            key_sets.add_bulk(tx, one.form, one.keys, rows)


def _probes(made: Iterable[Made]) -> list[str]:
    """Give the entries that are read back: of each form the first, and every one that is unusual."""
    found: list[str] = []
    seen: set[Form] = set()
    for one in made:
        found += one.probes[1:] if one.form in seen else one.probes
        seen.add(one.form)
    return found


def given_to(
    batches: Sequence[Batch], made: Sequence[tuple[Made, ...]]
) -> Iterator[tuple[holders.Place, tuple[bytes, ...]]]:
    """Give the place of each key set with the identities of its keys."""
    for batch, each in zip(batches, made, strict=True):
        for one in each:
            form = one.form
            identities = identities_of([stored for stored, _ in one.sets], form)
            for item, born in zip(batch.meters, identities, strict=True):
                yield (item.system_title.octets, form.security_setup, form.client, form.generation), born


def refuse_twins(made: Sequence[Made]) -> None:
    """Refuse a batch in which a key was made twice: AES key wrap is deterministic, so equal octets are equal keys."""
    octets = [key for one in made for key in wrapped_of([stored for stored, _ in one.sets], one.form)]
    if len(set(octets)) != len(octets):
        raise IntegrityError("the token made one key twice", hint="its random numbers cannot be trusted: stop using it")
