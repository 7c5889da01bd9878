"""Numbers of settings within their bounds: what a program is told to wait, keep or count is never without end."""

from __future__ import annotations

DAY = 86_400
YEAR = 366 * DAY


def outside(settings: object, most: dict[str, int], least: int = 1) -> list[tuple[str, str]]:
    """Name every (key, fault) of the settings whose number is below `least` or above what `most` says."""
    return [
        (name, f"must be {least} to {highest}")
        for name, highest in most.items()
        if not least <= getattr(settings, name) <= highest
    ]
