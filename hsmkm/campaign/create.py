"""Makes a campaign: its meters chosen, each looked at, and all of it stored in one transaction, or nothing.

Meters are looked at before that transaction, which keeps every other writer waiting, and once more at the start.
They are read and stored in pages; some 20 octets are held of each meanwhile.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from hsmkm.campaign.fitness import Faults, Fitness
from hsmkm.campaign.selection import Line, Query, read_titles
from hsmkm.campaign.terms import Terms
from hsmkm.errors import InputError
from hsmkm.steps.first_lines import FirstLines
from hsmkm.steps.party import Party
from hsmkm.store import campaigns, fleet
from hsmkm.store.campaign import Counts
from hsmkm.store.candidate import Candidate
from hsmkm.store.key_set import TITLE_OCTETS
from hsmkm.store.store import Transaction

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
UNFIT_HINT = "correct them, choose others, or leave them out and listed as skipped: --leave-out"

Row = tuple[bytes, int, str]
"""A meter's system title, the generation in force, and why it is skipped; empty if it is not."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A campaign as it is asked for: `file` names its meters, else `query` chooses them, else all are meant.

    With `leave_out` a meter that cannot be worked on is listed as skipped; else nothing is made where there is one.
    """

    name: str
    terms: Terms
    query: Query | None = None
    file: Path | None = None
    leave_out: bool = False


def create(party: Party, asked: Asked, said: str) -> Counts:
    """Make a campaign, which nothing is done for until it is started; `said` is how its meters were asked for.

    Raises InputError with the faults of all meters at once (the first hundred of them), RefusedError for a known name.
    """
    if not _NAME.fullmatch(asked.name):
        raise InputError(f"{asked.name[:80]!r} is not a campaign's name", hint="letters, digits, dot, dash, underscore")
    terms = asked.terms.checked()
    detail = {**terms.settings(), "meters": said, "leave_out": asked.leave_out}
    faults, fitness = Faults(), Fitness(party.home, terms.association)
    with party.store.read() as tx:
        campaigns.refuse_known(tx, asked.name)
        look = _of_query if asked.file is None else _of_file
        chosen = _Chosen(look(tx, asked, fitness, faults))
    faults.refuse(f"campaign {asked.name} was not made", UNFIT_HINT)
    if not chosen:
        raise InputError(f"campaign {asked.name} was not made: no meter was chosen", hint="see: hsmkm meter list")
    with party.store.begin("campaign-create", asked.name, detail) as tx:
        campaign = campaigns.create(tx, asked.name, terms.kind, detail)
        for rows in in_pages(chosen):
            campaigns.add_meters(tx, campaign, rows)
        return campaigns.counts(tx, campaign)


class _Chosen:
    """Meters as they are to be stored, in a few octets each; what many are skipped for is held once."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._titles, self._generations, self._reasons = bytearray(), array("Q"), array("I")
        self._texts: dict[str, int] = {}
        for title, generation, text in rows:
            self._titles += title
            self._generations.append(generation)
            self._reasons.append(self._texts.setdefault(text, len(self._texts)))

    def __len__(self) -> int:
        return len(self._generations)

    def __iter__(self) -> Iterator[Row]:
        texts = list(self._texts)
        for place, (generation, reason) in enumerate(zip(self._generations, self._reasons, strict=True)):
            yield bytes(self._titles[place * TITLE_OCTETS : (place + 1) * TITLE_OCTETS]), generation, texts[reason]


def _of_query(tx: Transaction, asked: Asked, fitness: Fitness, faults: Faults) -> Iterator[Row]:
    query = asked.query or Query()
    for page in fleet.pages(tx, query.choice):
        for one in page:
            if query.holds(one, fitness.place(one), tx.now):
                yield from _row(asked, one, fitness, faults, (one.title, 0))


def _of_file(tx: Transaction, asked: Asked, fitness: Fitness, faults: Faults) -> Iterator[Row]:
    path, first_lines = asked.file or Path(), FirstLines()
    for lines in in_pages(read_titles(path)):
        found = fleet.of_titles(tx, [line.title for line in lines if not line.fault])
        for line in lines:
            text = line.fault or _fault_of_line(line, found, first_lines)
            if text:
                faults.add(path.name, line.number, text)
            else:
                yield from _row(asked, found[line.title], fitness, faults, (path.name, line.number))


def _fault_of_line(line: Line, found: dict[bytes, Candidate], first_lines: FirstLines) -> str:
    if line.title not in found:
        return f"there is no meter {line.title.hex().upper()}"
    if first_lines.note(line.title, line.number) != line.number:
        return f"meter {line.title.hex().upper()} stands there twice"
    return ""


def _row(asked: Asked, candidate: Candidate, fitness: Fitness, faults: Faults, place: tuple[str, int]) -> Iterator[Row]:
    """Yield the row of a meter; one that cannot be worked on is skipped, or a fault of its place in what was asked."""
    text = fitness.fault(candidate)
    if text and not asked.leave_out:
        source, line = place
        faults.add(source, line, f"meter {candidate.title}: {text}" if line else text)
    else:
        yield candidate.system_title, fitness.generation(candidate), text


def in_pages(items: Iterable[T]) -> Iterator[list[T]]:
    """Give items as they come, as many at a time as are looked up together."""
    given = iter(items)
    while page := list(islice(given, fleet.PAGE)):
        yield page
