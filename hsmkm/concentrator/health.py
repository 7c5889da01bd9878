"""How a running concentrator is: written to a file of its home at every change, for `hsmkm concentrator health`.

The process itself does not listen for it: what asks is on the same host, and reads a file that is replaced as a whole.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hsmkm.concentrator.reader import Round
from hsmkm.durable_file import replace_file
from hsmkm.errors import HsmkmError, InputError
from hsmkm.steps.communicate import is_gone, this_process

FILE = "health.json"
MOST_NAMED = 100
MISSED = 3
"""Intervals without a sign of life after which something is called not well."""

LEAST_SECONDS = 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is well or not."""

    check: str
    ok: bool
    detail: str


class Health:
    """Collects what the parts of the process tell, from any thread."""

    def __init__(self, home: Path, fetch_seconds: float, read_seconds: float | None) -> None:
        self._path = home / FILE
        self._lock = threading.Lock()
        self._told: dict[str, object] = {"process": this_process(), "started": _now(), "fetch_seconds": fetch_seconds}
        self._told |= {"packages": 0, "fetched": "", "fetch_error": "", "read_seconds": read_seconds, "rounds": 0}

    def fetched(self, packages: int, error: str) -> None:
        """Hear of an attempt to fetch: how many packages were taken, or why none could be."""
        with self._lock:
            self._told["packages"] = self._number("packages") + packages
            self._told["fetch_error"] = error
            if not error:
                self._told["fetched"] = _now()
            self._write()

    def read(self, told: Round, refusals: Mapping[str, int]) -> None:
        """Hear of a round of readings, and of the suspicious answers of the last day, by kind."""
        with self._lock:
            named = dict(list(told.unread.items())[:MOST_NAMED])
            self._told |= {"rounds": self._number("rounds") + 1, "round_ended": told.ended.isoformat()}
            self._told |= {"round_seconds": round(told.seconds, 1), "meters": told.meters}
            self._told |= {"unread": len(told.unread), "unread_meters": named, "refusals": dict(refusals)}
            self._write()

    def _number(self, name: str) -> int:
        value = self._told[name]
        return value if isinstance(value, int) else 0

    def _write(self) -> None:
        """Replace the file; a full disk is logged, and stops nothing."""
        try:
            replace_file(self._path, json.dumps(self._told | {"written": _now()}).encode())
        except HsmkmError as error:
            logger.warning("%s", error)


def _now() -> str:
    return datetime.now(UTC).replace(microsecond=0).isoformat()


def load(home: Path) -> dict[str, object]:
    """Read what the concentrator of a home wrote last; InputError where none ever ran."""
    path = home / FILE
    try:
        told = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint="start it: hsmkm concentrator run") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON", hint="it is written anew by: hsmkm concentrator run") from error
    if not isinstance(told, dict):
        raise InputError(f"{path} is not what a concentrator writes", hint="hsmkm concentrator run writes it anew")
    return told


def findings(told: dict[str, object], now: datetime) -> list[Finding]:
    """Judge it: does the process run, does it hear from its AIM, and was every meter read."""
    process = told.get("process")
    runs = isinstance(process, str) and not is_gone(process)
    found = [Finding("process", runs, f"runs since {told.get('started')}" if runs else "does not run")]
    found.append(_timely("fetch", told.get("fetched"), told.get("fetch_seconds"), now, str(told.get("fetch_error"))))
    if told.get("read_seconds"):
        found.append(_timely("reading", told.get("round_ended"), told.get("read_seconds"), now, ""))
        unread, meters = told.get("unread", 0), told.get("meters", 0)
        found.append(Finding("meters", not unread, f"{unread} of {meters} not read in the last round"))
        named = told.get("unread_meters")
        reasons = named.items() if isinstance(named, dict) else ()
        refused = told.get("refusals")
        counted = {str(kind): count for kind, count in refused.items()} if isinstance(refused, dict) else {}
        text = ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items())) or "none"
        found.append(Finding("refusals", not counted, f"{text} within 24 hours"))
        found += [Finding(f"meter {name}", ok=False, detail=str(reason)) for name, reason in reasons]
    return found


def _timely(check: str, last: object, every: object, now: datetime, error: str) -> Finding:
    seconds = max(MISSED * every, LEAST_SECONDS) if isinstance(every, int | float) else LEAST_SECONDS
    moment = _moment(last)
    ok = moment is not None and (now - moment).total_seconds() <= seconds and not error
    return Finding(check, ok, f"last at {last}" if ok else f"last at {last or 'no time'}; {error or 'overdue'}")


def _moment(text: object) -> datetime | None:
    """Read a moment as `_now` writes it; None for anything else."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo else None
