"""A meter as a value; `hsmkm.store.meters` stores it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


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
    def title(self) -> str:
        """The system title as 16 capital hex digits."""
        return self.system_title.hex().upper()
