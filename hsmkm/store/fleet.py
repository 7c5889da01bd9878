"""What campaigns ask of many meters at a time: where each is, who speaks with it now, and which keys are in force.

Read in pages by title, a few statements for each page, so that a million meters take little memory. These rows only
choose: whoever speaks with a meter reads it again and verifies it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, select

from hsmkm.store import schema
from hsmkm.store.candidate import Candidate, Choice, Generation
from hsmkm.store.key_set import STATES
from hsmkm.store.key_set_rows import KEY
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds

PAGE = 500


def pages(tx: Transaction, choice: Choice) -> Iterator[list[Candidate]]:
    """Read the meters of a choice by title, in pages."""
    after = b""
    while found := _page(tx, _chosen(choice), schema.meters.c.system_title > after):
        yield found
        after = found[-1].system_title


def of_titles(tx: Transaction, titles: Sequence[bytes]) -> dict[bytes, Candidate]:
    """Read up to a page of meters by their titles; those that are not there are left out."""
    if len(titles) > PAGE:
        raise ValueError("more titles than a page")
    found = _page(tx, [], schema.meters.c.system_title.in_(titles))
    return {one.system_title: one for one in found}


def _chosen(choice: Choice) -> list[ColumnElement[bool]]:
    c = schema.meters.c
    found: list[ColumnElement[bool]] = []
    if choice.models:
        found.append(schema.models.c.name.in_(choice.models))
    if choice.suites:
        found.append(c.suite.in_(choice.suites))
    if choice.concentrators:
        named = [name for name in choice.concentrators if name]
        there = c.concentrator.in_(named)
        found.append(there if len(named) == len(choice.concentrators) else there | c.concentrator.is_(None))
    return found


def _page(tx: Transaction, chosen: list[ColumnElement[bool]], which: ColumnElement[bool]) -> list[Candidate]:
    c = schema.meters.c
    statement: Select[Any] = select(
        c.system_title, schema.models.c.name.label("model"), c.suite, c.address, c.concentrator, c.state
    ).join_from(schema.meters, schema.models, c.model == schema.models.c.number)
    rows = tx.all(statement.where(which, *chosen).order_by(c.system_title).limit(PAGE))
    titles = [row["system_title"] for row in rows]
    held, keys = _holders(tx, titles), _generations(tx, titles)
    return [
        Candidate(**row, holder=held.get(row["system_title"]), generations=tuple(keys[row["system_title"]]))
        for row in rows
    ]


def _holders(tx: Transaction, titles: list[bytes]) -> dict[bytes, str]:
    c = schema.leases.c
    now = to_seconds(tx.now)
    statement = select(c.system_title, c.holder).where(c.system_title.in_(titles), c.expires > now)
    return {row["system_title"]: row["holder"] for row in tx.all(statement.where(c.holder.is_not(None)))}


def _generations(tx: Transaction, titles: list[bytes]) -> defaultdict[bytes, list[Generation]]:
    sets, states, audit = schema.key_sets, schema.key_states, schema.audit
    same = and_(*(sets.c[name] == states.c[name] for name in KEY))
    statement = (
        select(
            *(sets.c[name] for name in KEY),
            sets.c.state.label("first"),
            states.c.state,
            states.c.changed,
            audit.c.time,
        )
        .outerjoin_from(sets, states, same)
        .outerjoin(audit, audit.c.sequence == sets.c.batch)
    )
    found: defaultdict[bytes, list[Generation]] = defaultdict(list)
    for row in tx.all(statement.where(sets.c.system_title.in_(titles))):
        found[row["system_title"]].append(_generation(row, tx.now))
    return found


def _generation(row: StoredRow, now: datetime) -> Generation:
    """Say since when a generation is as it is: since its last transition, else since it came into the store."""
    place, number = (row["security_setup"], row["client"]), row["generation"]
    if row["state"] is not None:
        return Generation(place, number, STATES[row["state"]], from_seconds(row["changed"]))
    since = now if row["time"] is None else datetime.fromisoformat(row["time"])
    return Generation(place, number, STATES[row["first"]], since)
