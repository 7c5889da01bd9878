"""Moments as the store keeps them: whole seconds since 1970 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload


@overload
def to_seconds(moment: datetime) -> int: ...
@overload
def to_seconds(moment: datetime | None) -> int | None: ...
def to_seconds(moment: datetime | None) -> int | None:
    """Drop what is below a second; a moment without a time zone is a mistake of the program (ValueError)."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ValueError("a moment needs its time zone")
    return int(moment.timestamp())


@overload
def from_seconds(seconds: int) -> datetime: ...
@overload
def from_seconds(seconds: int | None) -> datetime | None: ...
def from_seconds(seconds: int | None) -> datetime | None:
    """Read a moment of the store."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
