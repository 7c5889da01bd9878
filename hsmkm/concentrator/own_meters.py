"""What the reader asks of its party, answered by a worker of the reader's own that has token and store open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from hsmkm.concentrator.reader import Round
from hsmkm.concentrator.readings import Line
from hsmkm.dlms.axdr import Data, Value
from hsmkm.dlms.types import AttributeRef
from hsmkm.steps import client_reading, suspicions
from hsmkm.steps.client_reading import Measured
from hsmkm.steps.party import Party
from hsmkm.token.standing import StandingWorker

LIST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class OwnMeters:
    """The meters of a concentrator that holds their keys; one may take `meter_seconds`, or its worker is replaced."""

    worker: StandingWorker[Party]
    attributes: tuple[AttributeRef, ...]
    meter_seconds: float

    def titles(self) -> list[bytes]:
        """Name the meters."""
        return self.worker.call(client_reading.meter_titles, deadline=LIST_SECONDS)

    def measure(self, title: bytes) -> list[Line]:
        """Read one meter and give the lines to keep."""
        return self.worker.call(_measure, title.hex().upper(), self.attributes, deadline=self.meter_seconds)

    def done(self, told: Round) -> dict[str, int]:
        """Tell the audit log of a round, and give the suspicious answers of the last day, by kind."""
        return self.worker.call(_record, told.meters, sorted(told.unread), deadline=LIST_SECONDS)


def _measure(party: Party, name: str, attributes: tuple[AttributeRef, ...]) -> list[Line]:
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    return [_line(now, name, item) for item in client_reading.measure(party, name, attributes)]


def _line(now: str, name: str, item: Measured) -> Line:
    ref = item.attribute
    line = {"time": now, "meter": name, "obis": str(ref.logical_name), "class": ref.class_id}
    line |= {"attribute": ref.attribute, "generation": item.generation}
    if item.data is None:
        return line | {"error": item.error}
    return line | {"type": item.data.name, "value": plain(item.data)}


def plain(data: Data) -> object:
    """Give a value as JSON has it: octets in hex, arrays and structures as lists, what is no number by its name."""
    value: Value = data.value
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex().upper()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _record(party: Party, count: int, unread: list[str]) -> dict[str, int]:
    name = party.settings.party.name
    with party.store.begin("meters-read", name, {"meters": count, "unread": len(unread), "first": unread[:10]}):
        pass
    return suspicions.of_last_day(party)
