"""A meter as a value; `hsmkm.store.meters` stores it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class MeterState(StrEnum):
    """Why a meter is not spoken with; one without such a state is in use.

    `withdrawn` is what a concentrator says of a meter that its AIM took from it.
    """

    SUSPENDED = "suspended"
    TRANSFERRING = "transferring"
    TRANSFERRED = "transferred"
    WITHDRAWN = "withdrawn"
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class Meter:
    """What a deployment knows of a meter.

    `system_title` (8 octets), `serial`, `model`, `suite` and `order` (the order's id) are its identity: they never
    change, and every key set's MAC covers them. The rest may change, and carries a MAC of its own from then on.
    `address` is "host:port", `concentrator` a party's name.
    """

    system_title: bytes
    serial: str
    model: str
    suite: int
    order: str | None = None
    address: str | None = None
    concentrator: str | None = None
    registered: datetime | None = None
    state: str | None = None

    @property
    def identity(self) -> tuple[bytes, str, str, int, str | None]:
        """What never changes, in the order of the fields."""
        return self.system_title, self.serial, self.model, self.suite, self.order

    @property
    def at_rest(self) -> MeterState | None:
        """Why it is not spoken with, or nothing."""
        return MeterState(self.state) if self.state in tuple(MeterState) else None

    @property
    def title(self) -> str:
        """The system title as 16 capital hex digits."""
        return self.system_title.hex().upper()
