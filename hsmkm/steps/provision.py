"""Steps 1 and 2: unique key sets for each meter of a production order, and the injection package that carries them.

A meter has one key set for each association of its model. For one of them, in the token: generate 4 keys; wrap 4 for
the store; wrap GUEK, GBEK and GAK under the master key, and the master key under the package key; make the MAC (2
calls); destroy 4. An LLS or HLS secret is one more key. Up to 10,000 key sets make one package, and one transaction
holds the meters, their key sets and the package's record; a crash between two goes on where it stopped.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hsmkm.config import load_model
from hsmkm.errors import Fault, InputError, IntegrityError
from hsmkm.meter_model import MeterModel
from hsmkm.packages.content import MAX_METERS, MeterEntry, Purpose, WrappedKey, under
from hsmkm.packages.send import seal_package
from hsmkm.pki.slots import curve_for
from hsmkm.steps.certify import trust_of
from hsmkm.steps.credentials import new_key, secret_roles
from hsmkm.steps.deliver import header_for, outbox, recipient, record, signatory
from hsmkm.steps.first_package import check_recipient
from hsmkm.steps.order import OrderedMeter, ProductionOrder, read_order
from hsmkm.steps.party import Party
from hsmkm.steps.results import Provisioned, Sent
from hsmkm.store import key_sets, meters, orders
from hsmkm.store.key_set import IDENTITY_OCTETS, KeySet, KeySetRef, KeyState, StoredKey
from hsmkm.store.meter import Meter
from hsmkm.store.orders import Order
from hsmkm.store.store import Transaction
from hsmkm.token.keys import KeyHandle
from hsmkm.token.types import KeyRole, MeterRole

FIRST_GENERATION = 1
GLOBAL_KEYS = (KeyRole.GUEK, KeyRole.GBEK, KeyRole.GAK)


@dataclass(frozen=True, slots=True)
class _Born:
    meter: Meter
    key_set: KeySet
    entry: MeterEntry


def provision(party: Party, path: Path, line: str) -> Provisioned:
    """Provision a production order for a line equipment; an order given again does nothing.

    Raises InputError with every fault of the file, RefusedError where the line equipment may not have it; nothing is
    provisioned then.
    """
    order = read_order(path, lambda name: load_model(name, party.home))
    with outbox(party):
        return _provision(party, order, line)


def _provision(party: Party, order: ProductionOrder, line: str) -> Provisioned:
    order_id = order.digest.hex()
    with party.store.read() as tx:
        known = orders.get(tx, order_id)
        if known is not None and known.state == orders.DONE:
            return Provisioned(order_id, known.rows, (), already=True)
        waiting = _waiting(party, tx, order)
    check_recipient(party, line)
    models = {name: load_model(name, party.home) for name in {item.model for item in waiting}}
    sent = [_provision_chunk(party, order, chunk, line) for chunk in _chunks(waiting, models)]
    with party.store.begin("order-done", order_id, {"meters": len(order.meters)}) as tx:
        orders.set_state(tx, order_id, orders.DONE)
    return Provisioned(order_id, len(order.meters), tuple(item.path for item in sent), already=False)


def _chunks(waiting: Sequence[OrderedMeter], models: Mapping[str, MeterModel]) -> list[list[OrderedMeter]]:
    """Divide meters so that the key sets of each chunk fit into one package."""
    chunks: list[list[OrderedMeter]] = []
    room = 0
    for item in waiting:
        needed = len(models[item.model].associations)
        if needed > room:
            chunks.append([])
            room = MAX_METERS
        chunks[-1].append(item)
        room -= needed
    return chunks


def _waiting(party: Party, tx: Transaction, order: ProductionOrder) -> list[OrderedMeter]:
    """Give the meters still to be made; InputError where one belongs to another order or maker."""
    waiting, faults = [], []
    own = party.settings.party.flags
    for item in order.meters:
        known = meters.get(tx, item.system_title.octets)
        if item.system_title.flag not in own:
            text = f"FLAG id {item.system_title.flag} is not one of this factory ({', '.join(own) or 'it has none'})"
            faults.append(Fault(order.name, item.line, item.column, text))
        elif known is None:
            waiting.append(item)
        elif known.order != order.digest.hex():
            text = f"{item.system_title} was provisioned by another order"
            faults.append(Fault(order.name, item.line, item.column, text))
    if faults:
        hint = "take these meters out of the order, or give it to the factory that makes them"
        raise InputError(f"order {order.name} has {len(faults)} fault(s), nothing was provisioned", faults, hint)
    return waiting


def _provision_chunk(party: Party, order: ProductionOrder, chunk: Sequence[OrderedMeter], line: str) -> Sent:
    suites = {item.suite for item in chunk}
    curve = curve_for(suites)
    sender, receiver = signatory(party, curve), recipient(party, line, curve)
    header = header_for(party, Purpose.INJECTION, sender, receiver)
    order_id = order.digest.hex()
    born: list[_Born] = []

    def fill(package_key: KeyHandle) -> tuple[MeterEntry, ...]:
        for item in chunk:
            born.extend(births(party, package_key, item, order_id))
        _refuse_twins(born)
        return tuple(item.entry for item in born)

    package = seal_package(party.vault, trust_of(party), sender, receiver, header, suites, fill)

    def also(tx: Transaction) -> None:
        if orders.get(tx, order_id) is None:
            orders.add(tx, Order(order_id, order.name, len(order.meters)))
        meters.add_many(tx, list({item.meter.system_title: item.meter for item in born}.values()))
        key_sets.add_many(tx, [item.key_set for item in born])

    return record(party, package, also)


def births(party: Party, package_key: KeyHandle, item: OrderedMeter, order_id: str) -> list[_Born]:
    """Make one meter's key sets, one for each association."""
    whole = load_model(item.model, party.home)
    meter = Meter(item.system_title.octets, item.serial, item.model, item.suite, order=order_id)
    return [_birth(party, package_key, whole.association(name), item, meter) for name in whole.associations]


def _birth(party: Party, package_key: KeyHandle, model: MeterModel, item: OrderedMeter, meter: Meter) -> _Born:
    """Make one key set: 18 calls of the token, none of which asks for a length, and 4 more for a secret."""
    vault = party.vault
    ref = KeySetRef(meter.system_title, *model.place, FIRST_GENERATION)
    stored, wrapped = [], []
    with ExitStack() as handles:
        master = handles.enter_context(vault.generate(KeyRole.MASTER, item.suite))
        others: tuple[MeterRole, ...] = (*GLOBAL_KEYS, *secret_roles(model))
        keys = {role: handles.enter_context(new_key(party, model, role, item.suite)) for role in others}
        for role, key in {**keys, KeyRole.MASTER: master}.items():
            identity = secrets.token_bytes(IDENTITY_OCTETS)
            stored.append(StoredKey(role, identity, vault.seal(key).wrapped))
            carrier = package_key if role is KeyRole.MASTER else master
            wrapped.append(WrappedKey(role, identity, vault.wrap(carrier, key), under(Purpose.INJECTION, role)))
    key_set = KeySet(ref, item.suite, vault.storage_key, KeyState.PRE_ACTIVE, tuple(stored))
    key_set = key_sets.authenticate(vault, key_set, meter)
    return _Born(meter, key_set, _entry(meter, key_set, tuple(wrapped)))


def _entry(meter: Meter, key_set: KeySet, wrapped: tuple[WrappedKey, ...]) -> MeterEntry:
    return MeterEntry(
        system_title=meter.system_title,
        serial=meter.serial,
        model=meter.model,
        suite=meter.suite,
        security_setup=key_set.ref.security_setup,
        client=key_set.ref.client,
        generation=key_set.ref.generation,
        state=key_set.state.value,
        keys=wrapped,
    )


def _refuse_twins(born: Sequence[_Born]) -> None:
    """Refuse a batch in which a key was made twice: AES key wrap is deterministic, so equal octets are equal keys."""
    octets = [key.wrapped for item in born for key in item.key_set.keys]
    if len(set(octets)) != len(octets):
        raise IntegrityError("the token made one key twice", hint="its random numbers cannot be trusted: stop using it")
