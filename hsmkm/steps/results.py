"""What the steps tell whoever asked: plain values, which a process without a token takes from its worker.

Nothing heavy is imported here, so that a command that only shows results starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hsmkm.errors import HsmkmError

if TYPE_CHECKING:
    from hsmkm.dlms.axdr import Data
    from hsmkm.dlms.types import AttributeRef


@dataclass(frozen=True, slots=True)
class TokenMade:
    """What `hsmkm token init` made: the token's address, and the labels of its keys."""

    uri: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resealed:
    """What a rotation brought under keys of its number: a table, and how many of its rows."""

    number: int
    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class Backup:
    """An archive that was written or read: its party, purpose, files and octets, and the last audit record in it."""

    path: Path
    party: str
    purpose: str
    files: int
    octets: int
    audit: int


@dataclass(frozen=True, slots=True)
class Made:
    """A certificate or list that was written: its profile, subject and file."""

    profile: str
    subject: str
    path: Path
    serial: str = ""


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What an order came to: its id, the number of its meters, and its injection packages."""

    order: str
    meters: int
    packages: tuple[Path, ...]
    already: bool


@dataclass(frozen=True, slots=True)
class Sent:
    """A package on its way: its id, purpose, recipient, file, and how many meters it speaks of."""

    id: str
    purpose: str
    recipient: str
    path: Path
    meters: int


@dataclass(frozen=True, slots=True)
class Told:
    """A package that tells of meters: accepted, or without its receipt, refused or waiting, and then with the error."""

    sent: Sent
    state: str
    error: HsmkmError | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """A package that is in our store, with its receipt."""

    id: str
    purpose: str
    sender: str
    meters: int
    receipt: bytes
    path: Path
    replayed: bool


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A request that was written, or a certificate that the meter holds or gave up."""

    meter: str
    profile: str
    state: str
    path: Path | None = None
    serial: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a piece of work on one meter ended."""

    system_title: str
    state: str
    generation: int
    detail: str
    error: HsmkmError | None = None
    association: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """One attribute as the meter gave it."""

    attribute: AttributeRef
    data: Data


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a meter, under which agreed key (one-pass or static), and whether it must be signed."""

    attribute: AttributeRef
    key: str = "one-pass"
    signed: bool = False


@dataclass(frozen=True, slots=True)
class Protected:
    """An APDU that was written to a file, and its transaction."""

    meter: str
    transaction: str
    path: Path
    octets: int


@dataclass(frozen=True, slots=True)
class Permission:
    """Whether a party may reach a meter through us."""

    meter: str
    party: str
    state: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a store lost and how it goes on: changes that are gone (None: unknown), counters raised, meters to renew."""

    changes: int | None
    counter_jump: int
    counters: int
    meters: int
