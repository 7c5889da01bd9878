"""Which meters of an order are still to be made: one octet is held for each of them, whatever the order's size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress, islice

from hsmkm.packages.content import MAX_METERS
from hsmkm.steps.order import Faults, OrderedMeter, ProductionOrder
from hsmkm.steps.party import Party
from hsmkm.store import meters

NOT_OURS = "take these meters out of the order, or give it to the factory that makes them"


@dataclass(frozen=True, slots=True)
class Waiting:
    """The meters of an order to be made; `wanted` has for each meter of the order a 1, or a 0 where it is made."""

    order: ProductionOrder
    wanted: bytes = field(repr=False)

    def __len__(self) -> int:
        return self.wanted.count(1)

    def __iter__(self) -> Iterator[OrderedMeter]:
        return compress(self.order.meters, self.wanted)


def waiting_of(party: Party, order: ProductionOrder) -> Waiting:
    """Look up the meters of an order, each page in a transaction of its own, so that no writer waits for a reader.

    InputError names the first of those that belong to another order or maker.
    """
    wanted, faults = bytearray(), Faults()
    for page in _pages(order.meters):
        with party.store.read() as tx:
            made = meters.of_titles(tx, [item.system_title.octets for item in page])
        orders = {title: meter.order for title, meter in made.items()}
        for item in page:
            title = item.system_title.octets
            wanted.append(title not in orders)
            if text := _fault(party, order, item, orders.get(title, "")):
                faults.note(order.name, item.line, item.column, text)
    faults.refuse(order.name, NOT_OURS)
    return Waiting(order, bytes(wanted))


def chunks_of(waiting: Waiting) -> Iterator[list[OrderedMeter]]:
    """Divide meters so that the key sets of each chunk fit into one package."""
    models, chunk, room = waiting.order.models, list[OrderedMeter](), MAX_METERS
    for item in waiting:
        needed = len(models[item.model].associations)
        if needed > room:
            yield chunk
            chunk, room = [], MAX_METERS
        chunk.append(item)
        room -= needed
    if chunk:
        yield chunk


def _pages(items: Iterable[OrderedMeter]) -> Iterator[list[OrderedMeter]]:
    given = iter(items)
    while page := list(islice(given, meters.PAGE)):
        yield page


def _fault(party: Party, order: ProductionOrder, item: OrderedMeter, known: str | None) -> str:
    """Say why a meter is not for us to make; `known` is the order that it was made by, empty where it was not."""
    own = party.settings.party.flags
    if item.system_title.flag not in own:
        return f"FLAG id {item.system_title.flag} is not one of this factory ({', '.join(own) or 'it has none'})"
    if known != "" and known != order.digest.hex():
        return f"{item.system_title} was provisioned by another order"
    return ""
