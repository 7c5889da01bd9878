"""What the HTTPS interface asks of the party behind it.

The methods may block and are called from several threads. An error of hsmkm.errors becomes an answer: a token that is
gone is 503, a refusal 409, a wrong input 422, policy 403, anything else 500 without its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class PackageSummary:
    """A package that waits for its receipt; `id` is a UUID, `sha256` 64 hex digits over its `octets` octets."""

    id: str
    purpose: str
    sequence: int
    sha256: str
    octets: int


class ReceiptResult(StrEnum):
    """What became of a receipt; a replay is a receipt equal to the one that is already kept."""

    ACCEPTED = "accepted"
    REPLAYED = "replayed"
    UNKNOWN = "unknown"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ReceiptOutcome:
    """The result, and every reason of a refusal."""

    result: ReceiptResult
    reasons: tuple[str, ...] = ()


class Desk(Protocol):
    """The counter of the party: it tells callers apart and hands each what is theirs."""

    def party_for(self, certificate_der: bytes) -> str | None:
        """Return the registered party whose pinned TLS certificate this is."""

    def may_observe(self, party: str) -> bool:
        """Tell whether the party may read the metrics, which speak of everybody's traffic."""

    def packages(self, party: str) -> Sequence[PackageSummary]:
        """List the party's packages without receipt, by rising sequence within a purpose, at most 1,000."""

    def package(self, party: str, package_id: str) -> bytes | None:
        """Return the `.p7m` if it was made for this party; a stranger's package is None like an unknown one."""

    def receipt(self, party: str, package_id: str, content: bytes) -> ReceiptOutcome:
        """Check and keep a receipt; UNKNOWN for a package that is not this party's."""

    def refusals(self) -> Mapping[str, int]:
        """Count the suspicious answers of meters that were refused, by kind."""

    def forward(self, party: str, meter: str, apdu: bytes) -> bytes:
        """Carry an APDU of the party's to the meter of this system title, and return the meter's answer."""

    def ready(self) -> tuple[bool, str]:
        """Tell whether token and store answer, and if not, what is wrong."""
