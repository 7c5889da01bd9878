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
    """How a meter behaves; a fault hits the next `fault_count` new keys, -1 for all."""

    activate: Activation = Activation.AFTER_RESPONSE
    ic_reset: bool = False
    fault: Fault | None = None
    fault_count: int = 1
    challenge: Callable[[int], bytes] = secrets.token_bytes
    algorithms: AlgorithmIds = field(default_factory=AlgorithmIds)
    now: Callable[[], datetime] = _now
