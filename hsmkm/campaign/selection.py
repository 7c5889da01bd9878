"""Which meters a campaign is for: `all`, a file of system titles, or a query.

A query is a list of terms, all of which must hold; a term is a name, `=` and one or several values with commas:

    model=virtual,virtual-1     models by name
    suite=0                     security suites
    concentrator=dc-north       concentrators by name; none: those without one
    state=active                state of the keys in force: active, compromised, or none
    age>90d                     keys in force for longer than that; also h for hours, and < for less

Values with spaces stand in double quotes: concentrator="dc north". The terms choose among rows; nothing of them is
ever part of a statement to the database.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from hsmkm.errors import InputError
from hsmkm.store.candidate import Candidate, Choice
from hsmkm.store.key_set import TITLE_OCTETS

LONGEST_QUERY = 2000
MOST_VALUES = 100
LONGEST_LINE = 200
ANY = Choice()
STATES = ("active", "compromised", "none")
_VALUE = re.compile(r'"([^"]*)"|([^\s",]+)', re.ASCII)
_TERM = re.compile(rf"\s*([a-z]{{1,20}})\s*(=|>|<)\s*((?:{_VALUE.pattern})(?:,(?:{_VALUE.pattern}))*)", re.ASCII)
_AGE = re.compile(r"([0-9]{1,5})(d|h)", re.ASCII)
_TITLE = re.compile(r"[0-9A-Fa-f]{16}", re.ASCII)
_HINT = "for example: model=virtual suite=0 concentrator=dc-1 state=active age>90d"


@dataclass(frozen=True, slots=True)
class Query:
    """Terms of a query; empty ones hold for every meter."""

    choice: Choice = ANY
    states: tuple[str, ...] = ()
    older: timedelta | None = None
    younger: timedelta | None = None

    def holds(self, candidate: Candidate, place: tuple[int, int], now: datetime) -> bool:
        """Tell whether the keys that are in force for a place are in these states and of this age."""
        found = candidate.in_force(place)
        if self.states and (found.state.value if found else "none") not in self.states:
            return False
        if self.older is None and self.younger is None:
            return True
        if found is None:
            return False
        age = now - found.since
        return (self.older is None or age > self.older) and (self.younger is None or age < self.younger)


def parse_query(text: str) -> Query:
    """Read a query; InputError says which part is not one."""
    if len(text) > LONGEST_QUERY:
        raise InputError(
            f"the query has more than {LONGEST_QUERY} characters", hint="give the meters in a file: --meters"
        )
    terms: dict[str, list[str]] = {}
    place = 0
    while text[place:].strip():
        match = _TERM.match(text, place)
        if match is None:
            raise InputError(f"the query cannot be read from {text[place:][:40].strip()!r} on", hint=_HINT)
        name = match[1] if match[2] == "=" else match[1] + match[2]
        values = [quoted or plain for quoted, plain in _VALUE.findall(match[3])]
        if name in terms:
            raise InputError(f"the query has the term {name} twice", hint="put its values together, with commas")
        if len(values) > MOST_VALUES:
            raise InputError(
                f"the term {name} has more than {MOST_VALUES} values", hint="give the meters in a file: --meters"
            )
        terms[name] = values
        place = match.end()
    if not terms:
        raise InputError("the query is empty", hint=f"{_HINT}; or all in place of it")
    return _query(terms)


def _query(terms: dict[str, list[str]]) -> Query:
    known = ("model", "suite", "concentrator", "state", "age>", "age<")
    unknown = [name for name in terms if name not in known]
    if unknown:
        raise InputError(f"the query has the unknown term {unknown[0]}", hint=_HINT)
    states = tuple(terms.get("state", ()))
    wrong = [state for state in states if state not in STATES]
    if wrong:
        raise InputError(f"{wrong[0]!r} is no state of keys in force", hint=f"one of {', '.join(STATES)}")
    concentrators = tuple("" if name == "none" else name for name in terms.get("concentrator", ()))
    choice = Choice(tuple(terms.get("model", ())), tuple(map(_suite, terms.get("suite", ()))), concentrators)
    return Query(choice, states, _age(terms.get("age>")), _age(terms.get("age<")))


def _suite(text: str) -> int:
    if text not in ("0", "1", "2"):
        raise InputError(f"there is no security suite {text!r}", hint="0, 1 or 2")
    return int(text)


def _age(values: list[str] | None) -> timedelta | None:
    if values is None:
        return None
    match = _AGE.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        raise InputError(f"{','.join(values)!r} is no age", hint="days or hours: age>90d, age<12h")
    return timedelta(**{"d": {"days": int(match[1])}, "h": {"hours": int(match[1])}}[match[2]])


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file of meters: its number, and the system title in it, or why there is none."""

    number: int
    title: bytes
    fault: str = ""


def read_titles(path: Path) -> Iterator[Line]:
    """Read a file with one system title (16 hex digits) on each line, without holding it; `#` begins a comment.

    Raises InputError where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if found := _line(number, raw):
                    yield found
                while len(raw) > LONGEST_LINE and not raw.endswith(b"\n") and raw:
                    raw = file.readline(LONGEST_LINE + 1)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", hint="give a file with one system title a line"
        ) from error


def _line(number: int, raw: bytes) -> Line | None:
    if len(raw) > LONGEST_LINE:
        return Line(number, b"", f"longer than {LONGEST_LINE} octets")
    text = raw.decode("ascii", errors="replace").partition("#")[0].strip()
    if not text:
        return None
    if not _TITLE.fullmatch(text):
        return Line(number, b"", f"{text[:40]!r} is no system title of {2 * TITLE_OCTETS} hex digits")
    return Line(number, bytes.fromhex(text))
