"""The report of an order on a provisioning line: what became of each meter, and where it is filed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT = "hsmkm-line-report/1"
WORKING, DONE, FAILED = "working", "done", "failed"
ACTIVE, UNKNOWN, NO_ADDRESS = "active", "unknown", "no address"

Row = dict[str, Any]


@dataclass
class Report:
    """What became of an order; kept beside it, and written anew after each step."""

    order: str
    id: str
    line: str
    utility: str
    claimed: str
    state: str = WORKING
    finished: str = ""
    injection: list[str] = field(default_factory=list)
    delivery: list[str] = field(default_factory=list)
    meters: list[Row] = field(default_factory=list)
    error: str = ""
    hint: str = ""
    faults: list[str] = field(default_factory=list)
    format: str = FORMAT


def free(folder: Path, stem: str, report: Report) -> Path:
    """Give NAME.csv, or NAME-2.csv and so on where another order is filed under that name."""
    number, target = 1, folder / f"{stem}.csv"
    while target.exists() or not belongs(target.with_suffix(".json"), report):
        number += 1
        target = folder / f"{stem}-{number}.csv"
    return target


def belongs(path: Path, report: Report) -> bool:
    """Tell whether a report's place is free, or taken by this very report."""
    try:
        return not path.exists() or bool(json.loads(path.read_text(encoding="utf-8")) == asdict(report))
    except ValueError:
        return False


def write(path: Path, report: Report) -> None:
    """Write a report whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(asdict(report), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def now() -> str:
    """Give the time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()
