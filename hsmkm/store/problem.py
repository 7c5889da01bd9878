"""What a check of the store finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that is not as it was written: its table, its key for people, and what does not fit."""

    table: str
    row: str
    text: str

    def __str__(self) -> str:
        return f"{self.table} {self.row}: {self.text}"
