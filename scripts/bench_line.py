"""What a line of scripts/bench is, and how it is measured: in turn with its floor, and by medians."""

from __future__ import annotations

import importlib
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

if TYPE_CHECKING:
    from bench_lab import Lab

PREFIX = "bench_of_"

Measure: TypeAlias = Callable[[int], float]
"""Does so many units of work, and gives the seconds that they took."""


@dataclass(frozen=True, slots=True)
class Line:
    """Work that is measured beside a floor.

    `name` is unique. `unit` says what is counted; `floor` what it is compared with. `ours` and `base` do `count` units
    (`few` in a sample) and `base_count` (as many, where 0). `reach` is the least ratio of our rate to the floor's, or
    None where the line is only shown. `axis` and `at` place it on a plot: the name of the axis, and the value there.
    """

    name: str
    unit: str
    floor: str
    ours: Measure
    base: Measure
    count: int
    few: int
    reach: float | None = None
    base_count: int = 0
    axis: str = ""
    at: float = 0.0
    warm_up: bool = True
    most_rounds: int = 0
    """So many rounds are measured at most, where that is not 0: of work that cannot be done twice alike."""
    extra: Callable[[], dict[str, float]] | None = field(default=None)
    """Further figures to show, such as memory; asked for after the rounds."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What a line was found to be: rates in units a second, and ratios of ours to the floor's, one for each round."""

    group: str
    line: Line
    ours: tuple[float, ...]
    base: tuple[float, ...]
    extra: dict[str, float]

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratio of each round."""
        return tuple(ours / base for ours, base in zip(self.ours, self.base, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Whether the line reaches what it should; None where it is only shown."""
        return None if self.line.reach is None else self.ratio >= self.line.reach

    def document(self) -> dict[str, object]:
        """Return the figure as JSON values."""
        line = self.line
        return {
            "group": self.group,
            "name": line.name,
            "unit": line.unit,
            "floor": line.floor,
            "rate": round(statistics.median(self.ours), 2),
            "floor_rate": round(statistics.median(self.base), 2),
            "ratio": round(self.ratio, 3),
            "lowest": round(min(self.ratios), 3),
            "highest": round(max(self.ratios), 3),
            "reach": line.reach,
            "reached": self.reached,
            "rounds": len(self.ours),
            "axis": line.axis,
            "at": line.at,
            "extra": self.extra,
        }

    def text(self) -> str:
        """Say it in one line."""
        line = self.line
        wanted = "" if line.reach is None else f", to reach {line.reach:g}: {'yes' if self.reached else 'NO'}"
        more = "".join(f", {name} {value:g}" for name, value in self.extra.items())
        rates = f"{statistics.median(self.ours):,.0f} {line.unit}/s beside {statistics.median(self.base):,.0f}"
        return f"{line.name}: {rates} ({line.floor}): {self.ratio:.2f}{wanted}{more}"


class Group(Protocol):
    """A module scripts/bench_of_NAME.py."""

    def lines(self, lab: Lab) -> Iterator[Line]:
        """Give the lines of the group; what they need is made when they are measured, not here."""


def modules() -> dict[str, Group]:
    """Import the groups, by their names."""
    found = sorted(path.stem for path in Path(__file__).parent.glob(f"{PREFIX}*.py"))
    return {name.removeprefix(PREFIX): cast("Group", importlib.import_module(name)) for name in found}


def measured(group: str, line: Line, rounds: int, *, sample: bool) -> Figure:
    """Measure a line and its floor in turn; the first round's order is that of the second turned round, and so on."""
    count = line.few if sample else line.count
    base_count = count if sample or not line.base_count else line.base_count
    if line.warm_up:
        line.ours(max(1, min(line.few, count)))
    ours, base = [], []
    for number in range(min(rounds, line.most_rounds or rounds)):
        for is_ours in (True, False) if number % 2 else (False, True):
            if is_ours:
                ours.append(count / line.ours(count))
            else:
                base.append(base_count / line.base(base_count))
    return Figure(group, line, tuple(ours), tuple(base), line.extra() if line.extra else {})


def machine() -> dict[str, object]:
    """Describe where and when this is measured."""
    models = (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": next(models, platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []
