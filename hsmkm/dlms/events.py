"""What an answer of the meter means to the client: the events of an association."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from hsmkm.dlms.axdr import Data
from hsmkm.dlms.types import SystemTitle


class RefusalKind(Enum):
    """What kind of answer refused; `Refused.code` is the number within the kind."""

    DATA_ACCESS = "data-access-result"
    ACTION = "action-result"
    EXCEPTION = "exception-response"
    REJECTED = "association-rejected"
    CONFIRMED_SERVICE_ERROR = "confirmed-service-error"


@dataclass(frozen=True, slots=True)
class Send:
    """The protocol needs another request: send it and pass its answer to `receive`."""

    apdu: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Associated:
    """The association is open; under HLS the meter has proved that it holds the keys."""

    server_title: SystemTitle | None
    max_pdu: int


@dataclass(frozen=True, slots=True)
class Result:
    """The service was done; `data` is what a GET or a method returned."""

    data: Data | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The meter declined; where `authenticated` is False anybody on the way may have said so, `counter` included."""

    reason: str
    kind: RefusalKind
    code: int
    authenticated: bool
    counter: int | None = None


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The meter's answer to a third party; only that party can open or check it."""

    apdu: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Released:
    """The association is closed in good order."""


Event = Send | Associated | Result | Refused | Forwarded | Released
