"""The daily maintenance window of a campaign, in UTC or a time zone, over midnight if it ends before it begins.

22:00-05:00
01:30-04:00 Europe/Berlin
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from hsmkm.errors import InputError

_WINDOW = re.compile(r"([0-9]{2}:[0-9]{2})-([0-9]{2}:[0-9]{2})(?: ([A-Za-z0-9_+/-]{1,64}))?", re.ASCII)
_HINT = "write it as 22:00-05:00, or with a time zone: 22:00-05:00 Europe/Berlin"
_DAYS = 3
"""A day may lack the hour at which a window begins; the next one has it."""


@dataclass(frozen=True, slots=True)
class Window:
    """From `begins` (included) to `ends` (not included) by the clocks of `zone`, each day."""

    begins: time
    ends: time
    zone: str = "UTC"

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read HH:MM-HH:MM and a time zone; InputError for anything else."""
        match = _WINDOW.fullmatch(text)
        if match is None:
            raise InputError(f"{text[:80]!r} is not a maintenance window", hint=_HINT)
        try:
            begins, ends = (time.fromisoformat(match[part]) for part in (1, 2))
            zone = match[3] or "UTC"
            ZoneInfo(zone)
        except (ValueError, OSError, ZoneInfoNotFoundError) as error:
            raise InputError(f"{text!r} is not a maintenance window of any day and zone", hint=_HINT) from error
        if begins == ends:
            raise InputError(
                f"{text!r} has no length", hint="leave --window out where meters may be renewed at any time"
            )
        return cls(begins, ends, zone)

    def __str__(self) -> str:
        return f"{self.begins:%H:%M}-{self.ends:%H:%M} {self.zone}"

    def is_open(self, moment: datetime) -> bool:
        """Tell whether a moment lies within it."""
        at = moment.astimezone(ZoneInfo(self.zone)).time()
        if self.begins < self.ends:
            return self.begins <= at < self.ends
        return at >= self.begins or at < self.ends

    def opens(self, moment: datetime) -> datetime:
        """Give the first moment from this one on at which it is open, in UTC."""
        if self.is_open(moment):
            return moment.astimezone(UTC)
        zone = ZoneInfo(self.zone)
        today = moment.astimezone(zone).date()
        starts = (datetime.combine(today + timedelta(days=day), self.begins, zone) for day in range(_DAYS))
        return min(start.astimezone(UTC) for start in starts if start.astimezone(UTC) > moment)
