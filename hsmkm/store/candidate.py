"""A meter as those see it who choose among many: a value; `hsmkm.store.fleet` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hsmkm.store.key_set import KeyState


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation of the keys of one association of a meter, its state, and since when it has that."""

    place: tuple[int, int]
    number: int
    state: KeyState
    since: datetime


@dataclass(frozen=True, slots=True)
class Candidate:
    """A meter as the store has it; `holder` is whoever has its lease now."""

    system_title: bytes
    model: str
    suite: int
    address: str | None
    concentrator: str | None
    state: str | None
    holder: str | None
    generations: tuple[Generation, ...]

    @property
    def title(self) -> str:
        """The system title as 16 capital hex digits."""
        return self.system_title.hex().upper()

    def in_force(self, place: tuple[int, int]) -> Generation | None:
        """Give the newest generation that is active in an association, else the newest that is compromised."""
        here = [one for one in self.generations if one.place == place]
        for state in (KeyState.ACTIVE, KeyState.COMPROMISED):
            found = [one for one in here if one.state is state]
            if found:
                return max(found, key=lambda one: one.number)
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which meters: of one of these models, suites and concentrators (empty: of any; "" is no concentrator)."""

    models: tuple[str, ...] = ()
    suites: tuple[int, ...] = ()
    concentrators: tuple[str, ...] = ()
