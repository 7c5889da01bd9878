"""What may be done with a meter in each state, and what may not: the table of docs/life-cycle.md, pair by pair."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hsmkm.errors import HsmkmError, RefusedError
from hsmkm.steps.destroy import destroy
from hsmkm.steps.life import compromise, resume, suspend
from hsmkm.steps.party import Party
from hsmkm.steps.results import Outcome
from hsmkm.steps.transfer import transfer
from hsmkm.store import check, key_sets, meters
from hsmkm.store.key_set import KeySetRef, KeyState
from hsmkm.store.meter import Meter, MeterState
from tests.field import SERIALS
from tests.realm import Realm, copy_realm, title_of
from tests.street import add_newcomer

IN_USE = "in use"
PAGE = Path(__file__).parents[2] / "docs" / "life-cycle.md"
TURNS: dict[str, Callable[[Party, Sequence[str]], list[Outcome]]] = {
    "suspended": suspend,
    "resumed": resume,
    "compromised": lambda party, names: compromise(party, names, "opened"),
    "transferred": lambda party, names: transfer(party, names, "newcomer"),
    "destroyed": destroy,
}


def documented() -> dict[str, tuple[str, ...]]:
    section = PAGE.read_text(encoding="utf-8").partition("## What may be done with a meter")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z ]+) \| ([a-z, -]+) \|", section, re.MULTILINE)
    return {state: tuple(re.findall(r"[a-z]{2,}", turns)) for state, turns in rows if state != "meter"}


ALLOWED = [(state, turn) for state, turns in documented().items() for turn in turns]
STATES = (IN_USE, *(one.value for one in MeterState))


@pytest.fixture(scope="module")
def party(delivered_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Party]:
    """A utility with meters, that knows another utility; its store is in order at the end."""
    realm = copy_realm(delivered_template, tmp_path_factory.mktemp("edges") / "realm")
    add_newcomer(realm)
    with realm.open("utility") as opened:
        yield opened
        with opened.store.read() as tx:
            assert list(check.check(tx)) == []


def brought_to(party: Party, serial: int, state: str) -> None:
    """Put a meter, which is in use, into a state."""
    with party.store.begin("test-state", state, {}) as tx:
        found = meters.find(tx, title_of(serial))
        meters.update(tx, replace(found, state=None if state == IN_USE else state))


def present(party: Party, serial: int) -> tuple[Meter, list[tuple[KeySetRef, KeyState]]]:
    with party.store.read() as tx:
        found = meters.find(tx, title_of(serial))
        return found, [(one.ref, state) for one, state in key_sets.for_meter(tx, found.system_title)]


def test_the_page_speaks_of_every_state_and_every_turn() -> None:
    assert tuple(documented()) == STATES
    assert {turn for _, turn in ALLOWED} == TURNS.keys()


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("state", STATES)
def test_a_turn_is_taken_or_refused_as_the_page_says(party: Party, state: str, turn: str) -> None:
    if (state, turn) in ALLOWED:
        taken(party, state, turn)
    else:
        refused(party, state, turn)


def taken(party: Party, state: str, turn: str) -> None:
    serial = SERIALS[ALLOWED.index((state, turn))]
    brought_to(party, serial, state)
    before = present(party, serial)
    (outcome,) = TURNS[turn](party, [title_of(serial)])
    assert outcome.error is None
    assert present(party, serial) != before


def refused(party: Party, state: str, turn: str) -> None:
    serial = SERIALS[ALLOWED.index((IN_USE, "transferred"))]
    brought_to(party, serial, state)
    before = present(party, serial)
    try:
        (outcome,) = TURNS[turn](party, [title_of(serial)])
        error: HsmkmError | None = outcome.error
    except RefusedError as raised:
        error = raised
    assert isinstance(error, RefusedError)
    assert present(party, serial) == before
