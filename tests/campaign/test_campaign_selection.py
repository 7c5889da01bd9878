"""Which meters a campaign is for: queries and files, as people and enemies write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hsmkm.campaign.selection import LONGEST_LINE, parse_query, read_titles
from hsmkm.errors import InputError
from hsmkm.store.candidate import Candidate, Choice, Generation
from hsmkm.store.key_set import KeyState

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PLACE = (0, 1)


def candidate(*generations: tuple[KeyState, int]) -> Candidate:
    """A meter with generations in these states since so many days."""
    found = [
        Generation(PLACE, number, state, NOW - timedelta(days=days))
        for number, (state, days) in enumerate(generations, start=1)
    ]
    return Candidate(b"MMM\x00\x00\x00\x00\x01", "virtual", 0, "127.0.0.1:1", None, None, None, tuple(found))


def test_terms_are_read_whatever_stands_between_them() -> None:
    query = parse_query(
        '  model=virtual,virtual-1 suite = 0,2  concentrator="dc north",none state=active age>90d age<400d '
    )
    assert query.choice == Choice(("virtual", "virtual-1"), (0, 2), ("dc north", ""))
    assert query.states == ("active",)
    assert (query.older, query.younger) == (timedelta(days=90), timedelta(days=400))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "model",
        "model=",
        "colour=red",
        "model=a model=b",
        "suite=3",
        "suite=zero",
        "state=lost",
        "age=90d",
        "age>90",
        "age>90d,91d",
        "age>-1d",
        "model>a",
        "state=active; DROP TABLE meters",
        "model='virtual' OR 1=1",
        'concentrator="dc north',
        "model=" + ",".join("a" * 101),
        "model=" + "a" * 2000,
    ],
)
def test_what_is_no_query_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_query(text)
    assert caught.value.hint


def test_the_newest_generation_in_force_is_what_counts() -> None:
    old, fresh = (KeyState.ACTIVE, 100), (KeyState.PRE_ACTIVE, 1)
    assert parse_query("age>90d").holds(candidate(old, fresh), PLACE, NOW)
    assert not parse_query("age>90d").holds(candidate((KeyState.DEACTIVATED, 100), (KeyState.ACTIVE, 10)), PLACE, NOW)
    assert parse_query("age<24h").holds(candidate((KeyState.ACTIVE, 0)), PLACE, NOW)
    assert parse_query("state=compromised").holds(candidate((KeyState.COMPROMISED, 1)), PLACE, NOW)
    assert parse_query("state=none").holds(candidate(fresh), PLACE, NOW)
    assert not parse_query("age>1d").holds(candidate(), PLACE, NOW)


def test_a_file_is_read_line_by_line_and_each_fault_has_its_number(tmp_path: Path) -> None:
    path = tmp_path / "meters"
    long = b"4" * (3 * LONGEST_LINE)
    path.write_bytes(b"# all of them\n\n4d4d4d0000000001 # first\r\n" + long + b"\n\xff\xfe\n4D4D4D0000000002")
    found = list(read_titles(path))
    assert [(line.number, line.title.hex(), bool(line.fault)) for line in found] == [
        (3, "4d4d4d0000000001", False),
        (4, "", True),
        (5, "", True),
        (6, "4d4d4d0000000002", False),
    ]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        list(read_titles(tmp_path / "meters"))
