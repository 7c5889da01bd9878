"""The page of promises: each has a proof and a control that exist, and no harness is left out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.faults import report

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split("|") for line in TEXT.splitlines() if line.startswith("|") and "`" in line]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
PROMISES = range(1, 8)


@cache
def written_in(path: Path) -> frozenset[str]:
    """Collect the tests of a file without running it."""
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = (node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(name for name in functions if name.startswith("test_"))


def missing(cell: str) -> list[str]:
    """Name what a cell names and nobody wrote."""
    gone = []
    for file, name in NAMED.findall(cell):
        path = ROOT / file
        there = path.is_file() and (name in written_in(path) if name else proves(path))
        gone += [] if there else [f"{file}::{name}"]
    return gone


def proves(path: Path) -> bool:
    """Tell whether a file that is named as a whole has tests, or belongs to a harness."""
    return bool(written_in(path)) or path.parent == report.FOLDER


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip()[:60])
def test_a_promise_has_a_proof_and_a_control_that_exist(row: list[str]) -> None:
    _, proof, control = row
    assert NAMED.findall(proof)
    assert NAMED.findall(control)
    assert missing(proof) + missing(control) == []


def test_every_promise_of_the_page_on_security_is_listed() -> None:
    security = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    promised = {int(number) for number in re.findall(r"^\*\*(\d+)\. ", security, re.MULTILINE)}
    listed = {int(found[1]) for row in ROWS if (found := re.match(r" (\d+)\. ", row[0]))}
    assert promised == listed == set(PROMISES)


def test_every_harness_proves_a_promise() -> None:
    assert [name for name in report.names() if f"{report.PREFIX}{name}.py" not in TEXT] == []


def test_a_test_that_nobody_wrote_is_found() -> None:
    assert missing("`tests/test_docs_promises.py::test_that_is_not_there`, `tests/no_such_file.py`") != []
    assert missing("`tests/test_docs_promises.py::test_a_test_that_nobody_wrote_is_found`") == []
