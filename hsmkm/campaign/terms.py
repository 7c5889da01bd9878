"""What a campaign was asked to keep to, and who may work on it: read from options, kept as JSON in the store."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from hsmkm.campaign.window import Window
from hsmkm.errors import Fault, InputError
from hsmkm.store.key_set import ROLE_NAMES
from hsmkm.token.types import MeterRole

KINDS = ("renew",)
METHODS = ("key-transfer", "key-agreement")
LARGEST_SLICE = 500
LARGEST_RATE = 10_000.0
LONGEST_BACK_OFF = timedelta(days=1)
MOST_ATTEMPTS = 100
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_PER_CENT = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,3})?|100) ?%", re.ASCII)
_RATE = re.compile(r"([0-9]{1,5}(?:\.[0-9]{1,4})?)(?:/(s|min|h))?", re.ASCII)
_UNIT_SECONDS = {"s": 1, "min": 60, "h": 3600, None: 1}


@dataclass(frozen=True, slots=True)
class Limit:
    """How many meters may fail before a campaign stops by itself: a number, or a share of those tried."""

    meters: int | None = None
    per_cent: float | None = None

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read `50` or `5%`; InputError for anything else."""
        if _NUMBER.fullmatch(text) and int(text) > 0:
            return cls(meters=int(text))
        if (match := _PER_CENT.fullmatch(text)) and float(match[1]) > 0:
            return cls(per_cent=float(match[1]))
        raise InputError(
            f"{text[:80]!r} is not a limit of failures", hint="give a number of meters, or a share such as 5%"
        )

    def __str__(self) -> str:
        return f"{self.meters}" if self.per_cent is None else f"{self.per_cent:g}%"


@dataclass(frozen=True, slots=True)
class Terms:
    """What to do to each meter, and within which limits.

    `rate` is in meters a second, `back_off` the pause after the first failed attempt, doubled after each further one.
    """

    kind: str = "renew"
    roles: tuple[MeterRole, ...] = ()
    association: str = ""
    by: str = METHODS[0]
    rate: float | None = None
    window: Window | None = None
    attempts: int = 3
    back_off: timedelta = timedelta(minutes=15)
    stop: Limit | None = None
    slice: int = 100

    def checked(self) -> Terms:
        """Give these terms, or raise InputError with every fault of them."""
        faults = [Fault(f"--{name}", 0, 0, text) for name, text in self._faults()]
        if faults:
            raise InputError("the campaign cannot be made like that", faults)
        return self

    def _faults(self) -> Iterator[tuple[str, str]]:
        if self.kind not in KINDS:
            yield "kind", f"{self.kind!r} is not one of {', '.join(KINDS)}"
        if self.by not in METHODS:
            yield "by", f"{self.by!r} is not one of {', '.join(METHODS)}"
        if self.rate is not None and not 0 < self.rate <= LARGEST_RATE:
            yield "rate", f"must be above 0 and at most {LARGEST_RATE:g} a second"
        if not 1 <= self.attempts <= MOST_ATTEMPTS:
            yield "attempts", f"must be 1 to {MOST_ATTEMPTS}"
        if not timedelta() <= self.back_off <= LONGEST_BACK_OFF:
            yield "back-off", f"must be 0 to {LONGEST_BACK_OFF.total_seconds():.0f} seconds"
        if not 1 <= self.slice <= LARGEST_SLICE:
            yield "slice", f"must be 1 to {LARGEST_SLICE} meters"

    def settings(self) -> dict[str, object]:
        """Give them as the store keeps them, as JSON."""
        return {
            "kind": self.kind,
            "roles": [role.value for role in self.roles],
            "association": self.association,
            "by": self.by,
            "rate": None if self.rate is None else f"{self.rate:g}",
            "window": None if self.window is None else str(self.window),
            "attempts": self.attempts,
            "back_off": int(self.back_off.total_seconds()),
            "stop": None if self.stop is None else str(self.stop),
            "slice": self.slice,
        }

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> Terms:
        """Read what `settings` gave; InputError if it is nothing that this version writes."""
        try:
            return cls(
                kind=str(settings["kind"]),
                roles=tuple(ROLE_NAMES[role] for role in _texts(settings["roles"])),
                association=str(settings["association"]),
                by=str(settings["by"]),
                rate=None if settings["rate"] is None else float(str(settings["rate"])),
                window=None if settings["window"] is None else Window.parse(str(settings["window"])),
                attempts=int(str(settings["attempts"])),
                back_off=timedelta(seconds=int(str(settings["back_off"]))),
                stop=None if settings["stop"] is None else Limit.parse(str(settings["stop"])),
                slice=int(str(settings["slice"])),
            ).checked()
        except (KeyError, TypeError, ValueError) as error:
            hint = "make the campaign again with this version"
            raise InputError("the settings of the campaign are none of this version", hint=hint) from error


def parse_rate(text: str) -> float:
    """Read `2`, `0.5/s`, `30/min` or `600/h` as meters a second; InputError for anything else."""
    match = _RATE.fullmatch(text)
    if match is None or not math.isfinite(float(match[1])) or float(match[1]) <= 0:
        raise InputError(f"{text[:80]!r} is not a rate", hint="give meters by time: 2/s, 30/min or 600/h")
    return float(match[1]) / _UNIT_SECONDS[match[2]]


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return [str(item) for item in value]
