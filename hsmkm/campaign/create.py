"""Makes a campaign: its meters chosen, each looked at, and all of it stored in one transaction, or nothing.

Meters are read and stored in pages, so that a campaign over a million of them takes little memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hsmkm.campaign.fitness import Faults, Fitness
from hsmkm.campaign.selection import Line, Query, read_titles
from hsmkm.campaign.terms import Terms
from hsmkm.errors import InputError
from hsmkm.steps.party import Party
from hsmkm.store import campaigns, fleet
from hsmkm.store.campaign import Counts
from hsmkm.store.candidate import Candidate
from hsmkm.store.store import Transaction

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
    with party.store.begin("campaign-create", asked.name, detail) as tx:
        campaign = campaigns.create(tx, asked.name, terms.kind, detail)
        faults = Faults()
        fitness = Fitness(party.home, terms.association)
        if asked.file is None:
            pages = _of_query(tx, asked, fitness, faults)
        else:
            pages = _of_file(tx, campaign, asked, fitness, faults)
        added = sum(campaigns.add_meters(tx, campaign, rows) for rows in pages)
        faults.refuse(f"campaign {asked.name} was not made", UNFIT_HINT)
        if not added:
            raise InputError(f"campaign {asked.name} was not made: no meter was chosen", hint="see: hsmkm meter list")
        return campaigns.counts(tx, campaign)


def _of_query(tx: Transaction, asked: Asked, fitness: Fitness, faults: Faults) -> Iterator[list[Row]]:
    query = asked.query or Query()
    for page in fleet.pages(tx, query.choice):
        chosen = [one for one in page if query.holds(one, fitness.place(one), tx.now)]
        found = [_row(asked, one, fitness, faults, (one.title, 0)) for one in chosen]
        yield [row for row in found if row]


def _of_file(tx: Transaction, campaign: int, asked: Asked, fitness: Fitness, faults: Faults) -> Iterator[list[Row]]:
    """Yield the meters of a page of lines; those before are in the store by then, which shows what stands twice."""
    path = asked.file or Path()
    for lines in _pages(read_titles(path)):
        titles = [line.title for line in lines if not line.fault]
        found = fleet.of_titles(tx, titles)
        taken = campaigns.members(tx, campaign, titles)
        rows: list[Row] = []
        for line in lines:
            text = line.fault or _fault_of_line(line, found, taken)
            if text:
                faults.add(path.name, line.number, text)
                continue
            taken.add(line.title)
            if row := _row(asked, found[line.title], fitness, faults, (path.name, line.number)):
                rows.append(row)
        yield rows


def _fault_of_line(line: Line, found: dict[bytes, Candidate], taken: set[bytes]) -> str:
    if line.title not in found:
        return f"there is no meter {line.title.hex().upper()}"
    return f"meter {line.title.hex().upper()} stands there twice" if line.title in taken else ""


def _row(asked: Asked, candidate: Candidate, fitness: Fitness, faults: Faults, place: tuple[str, int]) -> Row | None:
    """Give the row of a meter; one that cannot be worked on is skipped, or a fault of its place in what was asked."""
    text = fitness.fault(candidate)
    if text and not asked.leave_out:
        source, line = place
        faults.add(source, line, f"meter {candidate.title}: {text}" if line else text)
        return None
    return candidate.system_title, fitness.generation(candidate), text


def _pages(lines: Iterable[Line]) -> Iterator[list[Line]]:
    given = iter(lines)
    while page := list(islice(given, fleet.PAGE)):
        yield page
