"""Which meters cannot be worked on, said of all of them before a campaign begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hsmkm.config import load_model
from hsmkm.errors import Fault, InputError
from hsmkm.meter_model import MeterModel
from hsmkm.steps.communicate import is_gone
from hsmkm.store.candidate import Candidate
from hsmkm.store.meter import MeterState

MOST_FAULTS = 100


@dataclass(slots=True)
class Faults:
    """Faults of an input of any length: the first ones as they are, and how many there are."""

    first: list[Fault] = field(default_factory=list)
    total: int = 0

    def add(self, source: str, line: int, text: str) -> None:
        """Take note of one."""
        self.total += 1
        if len(self.first) < MOST_FAULTS:
            self.first.append(Fault(source, line, 0, text))

    def refuse(self, what: str, hint: str) -> None:
        """Raise InputError with those that were kept, if there are any."""
        if self.total:
            more = f", of which the first {len(self.first)} are shown" if self.total > len(self.first) else ""
            raise InputError(f"{what}: {self.total} meters cannot be worked on{more}", self.first, hint=hint)


@dataclass(slots=True)
class Fitness:
    """What a meter must have for work in an association of its model, by name or the first."""

    home: Path
    association: str
    gone: Callable[[str], bool] = is_gone
    _models: dict[str, MeterModel | str] = field(default_factory=dict)

    def place(self, candidate: Candidate) -> tuple[int, int]:
        """Give the Security Setup and the client of the association; of a model without settings, of none."""
        model = self._model(candidate.model)
        return (-1, -1) if isinstance(model, str) else model.place

    def generation(self, candidate: Candidate) -> int:
        """Give the generation of the keys that are in force in the association; 0 where none is."""
        found = candidate.in_force(self.place(candidate))
        return found.number if found else 0

    def fault(self, candidate: Candidate) -> str:
        """Say why a meter cannot be worked on now; empty if it can."""
        model = self._model(candidate.model)
        if isinstance(model, str):
            return model
        if candidate.state in tuple(MeterState):
            return f"it is {candidate.state}"
        if candidate.in_force(model.place) is None:
            return "it has no keys in force"
        if not candidate.address and not candidate.concentrator:
            return "it has no address and no concentrator: it is not registered"
        if candidate.holder is not None and not self.gone(candidate.holder):
            return f"it is held by {candidate.holder} now"
        return ""

    def _model(self, name: str) -> MeterModel | str:
        """Read a model's settings once; where that fails, why."""
        if name not in self._models:
            try:
                self._models[name] = load_model(name, self.home).association(self.association)
            except InputError as error:
                self._models[name] = f"its model has no usable settings: {error.message}"
        return self._models[name]
