"""How far a campaign is: a bar with rate and remaining time on a terminal, elsewhere a JSON line now and then."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hsmkm.campaign.events import Claimed, Event, Refused, Worked
from hsmkm.campaign.lanes import Failed
from hsmkm.campaign.plan import Wait
from hsmkm.cli.frame import talk
from hsmkm.store.campaign import Counts, Standing

if TYPE_CHECKING:
    from rich.progress import Progress

SAY_AGAIN_SECONDS = 60.0
SETTLED = (Standing.DONE, Standing.GAVE_UP, Standing.SKIPPED)


class Course:
    """Counts what workers tell, and shows it; `every` is after how many meters a line is written."""

    def __init__(self, name: str, counts: Counts, every: int, bar: Progress | None = None) -> None:
        self._name = name
        self._total = sum(counts.values())
        self._settled = sum(counts[state] for state in SETTLED)
        self._every = every
        self._began = time.monotonic()
        self._worked = dict.fromkeys(Standing, 0)
        self._bar = bar
        self._task = bar.add_task(name, total=self._total, completed=self._settled, said="") if bar else None
        self._said: dict[str, float] = {}

    @property
    def worked(self) -> int:
        """How many attempts were made here."""
        return sum(self._worked.values())

    def take(self, event: Event | Failed) -> None:
        """Take note of what a worker told."""
        if isinstance(event, Worked):
            self._count(event)
        elif isinstance(event, Claimed):
            if event.taken_over and event.meters:
                talk(f"{event.campaign}: took over {event.meters} meters that another worker left")
        elif isinstance(event, Wait):
            self._wait(event)
        elif isinstance(event, Refused):
            self._talk_anew("; ".join((f"{event.campaign}: {event.message}", *event.reasons)))
        elif isinstance(event, Failed):
            self._talk_anew(f"a worker stopped: {event.error.message}")

    def _wait(self, event: Wait) -> None:
        if self._is_news(event.why):
            self._say({"waits": event.why, "until": event.until.isoformat(timespec="seconds")})

    def _talk_anew(self, text: str) -> None:
        if self._is_news(text):
            talk(text)

    def _is_news(self, text: str) -> bool:
        """Tell whether something is to be said: the same no more than once a minute."""
        now = time.monotonic()
        if now - self._said.get(text, -math.inf) < SAY_AGAIN_SECONDS:
            return False
        self._said[text] = now
        return True

    def _count(self, event: Worked) -> None:
        self._worked[event.state] += 1
        self._settled += event.state in SETTLED
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._settled, said=self._not_done())
        elif self.worked % self._every == 0:
            self.line()

    def _not_done(self) -> str:
        failed = self.worked - self._worked[Standing.DONE]
        return f"{self._rate:.1f}/s" + (f", {failed} attempts failed" if failed else "")

    @property
    def _rate(self) -> float:
        return self.worked / max(time.monotonic() - self._began, 1e-9)

    def line(self) -> None:
        """Write how far it is as one JSON line on stderr."""
        rate, left = self._rate, self._total - self._settled
        counted = {state.value: count for state, count in self._worked.items() if count}
        said: dict[str, object] = {**counted, "per_second": round(rate, 2)}
        if self._total:
            ahead = {"seconds_left": round(left / rate) if rate and left > 0 else 0}
            said = {"settled": self._settled, "of": self._total, **said, **ahead}
        self._say(said)

    def _say(self, said: dict[str, object]) -> None:
        if self._bar is None:
            talk(json.dumps({"campaign": self._name, **said}))
        elif self._task is not None:
            self._bar.update(self._task, said=str(said.get("waits", "")))


@contextmanager
def course(name: str, counts: Counts, every: int) -> Iterator[Course]:
    """Show the course of a campaign until the block ends."""
    if not sys.stderr.isatty():
        shown = Course(name, counts, every)
        yield shown
        if shown.worked % every:
            shown.line()
        return
    with _bar() as bar:
        yield Course(name, counts, every, bar)


def _bar() -> Progress:
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it, and it loads for long
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415 - as above

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[said]}"), console=Console(stderr=True))
