"""Reading all meters in turn, at an interval, beside the relay and the fetching of packages.

The reader has a worker of its own, so that a meter that is slow or dead holds up nothing but the reading: whoever
misses the deadline for a meter is ended, and the next meter gets a fresh one. A meter that is busy with the head end,
or that refuses (the AIM may be at its keys just then), is tried again behind the others, a few times in a round; one
that cannot be reached is left to the next round. What could not be read at the end of a round is written down as such.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hsmkm.concentrator.readings import Line
from hsmkm.concentrator.turns import Turns
from hsmkm.errors import HsmkmError, InputError, TokenUnreachableError, TransportError

PASSES = 5
PAUSE_SECONDS = 1.0
BUSY = "the head end is speaking with it"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Round:
    """How a round of readings went: when it ended, how long it took, and the meters (titles) that were not read."""

    ended: datetime
    seconds: float
    meters: int
    unread: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """What to ask and where to put it; everything may block and is called from one thread.

    `meters` names the meters (8 octets each), `measure` gives the lines of one, `write` keeps lines, `done` hears of
    each round; a round begins every `seconds`. `abandon` ends a reading that is under way when the process stops.
    """

    meters: Callable[[], Sequence[bytes]]
    measure: Callable[[bytes], Sequence[Line]]
    write: Callable[[Sequence[Line]], None]
    done: Callable[[Round], None]
    abandon: Callable[[], None]
    seconds: float


class Reader:
    """Reads until it is stopped."""

    def __init__(self, settings: ReaderSettings, turns: Turns) -> None:
        self._settings = settings
        self._turns = turns
        self._stop = threading.Event()

    def stop(self) -> None:
        """End the reading, also one that is under way: it is nothing but a reading, and its counters are durable."""
        self._stop.set()
        self._settings.abandon()

    def run(self) -> None:
        """Read round after round; a round that takes longer than the interval is followed by the next at once."""
        while not self._stop.is_set():
            began = time.monotonic()
            self._round(began)
            self._stop.wait(max(0.0, self._settings.seconds - (time.monotonic() - began)))

    def _round(self, began: float) -> None:
        try:
            titles = self._settings.meters()
        except HsmkmError as error:
            if not self._stop.is_set():
                logger.warning("reading: %s", error)
            return
        unread = self._read_all(titles)
        if self._stop.is_set():
            return
        now = datetime.now(UTC).replace(microsecond=0)
        for name, reason in unread.items():
            logger.warning("meter %s was not read: %s", name, reason)
        self._keep([{"time": now.isoformat(), "meter": name, "error": reason} for name, reason in unread.items()])
        try:
            self._settings.done(Round(now, time.monotonic() - began, len(titles), unread))
        except HsmkmError as error:
            logger.warning("the round of readings is not in the audit log: %s", error)

    def _read_all(self, titles: Sequence[bytes]) -> dict[str, str]:
        """Read each meter, those that may come to their senses in several passes; what is left, with reasons."""
        lost: dict[str, str] = {}
        waiting = list(titles)
        for number in range(PASSES):
            if number and self._stop.wait(PAUSE_SECONDS):
                break
            reasons = {title: self._read(title, lost) for title in waiting if not self._stop.is_set()}
            waiting = [title for title, reason in reasons.items() if reason]
            if not waiting:
                return lost
        return lost | {title.hex().upper(): reasons[title] for title in waiting}

    def _read(self, title: bytes, lost: dict[str, str]) -> str:
        """Read one meter; what another pass may mend is returned, what it cannot is lost for this round."""
        if not self._turns.begin_reading(title):
            return BUSY
        try:
            lines = self._settings.measure(title)
        except (TransportError, TokenUnreachableError, InputError) as error:
            lost[title.hex().upper()] = error.message
            return ""
        except HsmkmError as error:
            return error.message
        finally:
            self._turns.end_reading(title)
        if not self._keep(lines):
            lost[title.hex().upper()] = "the file of readings does not take it"
        return ""

    def _keep(self, lines: Sequence[Line]) -> bool:
        try:
            if lines:
                self._settings.write(lines)
        except HsmkmError as error:
            logger.warning("%s (%s)", error, error.hint)
            return False
        return True
