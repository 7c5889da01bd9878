"""How a virtual meter behaves where meters in the field differ, and how it fails."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from hsmkm.dlms.agreement import AlgorithmIds

EVERY_TIME = -1


class Activation(StrEnum):
    """When a new key becomes effective."""

    NOW = "now"
    AFTER_RESPONSE = "after-response"
    RELEASE = "release"


class Fault(StrEnum):
    """How a key_transfer or key_agreement goes wrong."""

    REJECT = "reject"
    DROP_BEFORE = "drop-before"
    DROP_AFTER = "drop-after"
    LIE = "lie"
    FIRST_ONLY = "first-only"


class DroppedError(Exception):
    """The meter closes the connection and does not answer."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class MeterSettings:
    """How a meter behaves; a fault hits the next `fault_count` new keys, -1 for all, of one Security Setup or any.

    `broadcast_sap` is the client that broadcasts come from, in an association that is always there.
    """

    activate: Activation = Activation.AFTER_RESPONSE
    ic_reset: bool = False
    fault: Fault | None = None
    fault_count: int = 1
    fault_setup: int | None = None
    challenge: Callable[[int], bytes] = secrets.token_bytes
    algorithms: AlgorithmIds = field(default_factory=AlgorithmIds)
    broadcast_sap: int = 102
    now: Callable[[], datetime] = _now


class Faults:
    """The faults that a device has still to make, in whichever of its Security Setups."""

    def __init__(self, settings: MeterSettings) -> None:
        self._settings = settings
        self._left = settings.fault_count

    def next(self, setup: int) -> Fault | None:
        """Give the fault that hits the next new keys of a Security Setup, and count it."""
        settings = self._settings
        if settings.fault is None or self._left == 0 or settings.fault_setup not in (None, setup):
            return None
        if self._left != EVERY_TIME:
            self._left -= 1
        return settings.fault
