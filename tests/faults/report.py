"""What a fault harness tells: how many injections hit, what they broke, and whether it sees a broken variant.

A harness is a module `tests/faults/harness_NAME.py` with `run(sample: int | None, seed: int) -> Report`: everything
where `sample` is None, else about that many injections, chosen by `seed`. `scripts/faults` finds it by its name.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

PREFIX = "harness_"
FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one harness."""

    name: str
    hits: int
    """Injections that really killed, failed or altered a run."""

    violations: tuple[str, ...]
    """Every promise that did not hold after an injection: which injection, and what was found."""

    found: int
    """Violations that it found in its negative control, a variant that was broken on purpose."""

    @property
    def passed(self) -> bool:
        """Tell whether nothing was violated, by a harness that hit something and can see a violation."""
        return self.hits > 0 and self.found > 0 and not self.violations

    def line(self) -> str:
        """Say it in one line."""
        return f"{self.name}: {self.hits} hits, {len(self.violations)} violations, negative control: {self.found} found"


class Harness(Protocol):
    """A module that injects faults of one kind."""

    def run(self, sample: int | None, seed: int) -> Report:
        """Inject all faults, or about `sample` of them as `seed` chooses, and say what they broke."""


def names() -> list[str]:
    """List the harnesses."""
    return sorted(path.stem.removeprefix(PREFIX) for path in FOLDER.glob(f"{PREFIX}*.py"))


def load(name: str) -> Harness:
    """Import a harness."""
    return cast("Harness", importlib.import_module(f"tests.faults.{PREFIX}{name}"))
