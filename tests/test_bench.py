"""scripts/bench runs every line; what it measures depends on the machine, and is not looked at here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.peer import peer_python

BENCH = Path(__file__).resolve().parent.parent / "scripts" / "bench.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, BENCH, *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_a_sample_measures_every_line_beside_its_floor() -> None:
    done = run("--sample", "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    groups = {path.stem.removeprefix("bench_of_") for path in BENCH.parent.glob("bench_of_*.py")}
    without_peers = set() if peer_python().exists() else {"renew"}
    assert {line["group"] for line in document["lines"]} == groups - without_peers
    assert document["machine"]["cores"] >= 1
    names = [line["name"] for line in document["lines"]]
    assert len(set(names)) == len(names)
    for line in document["lines"]:
        assert line["rate"] > 0
        assert line["floor_rate"] > 0
        assert line["lowest"] <= line["ratio"] <= line["highest"]
        assert line["reached"] in ((True, False) if line["reach"] else (None,))


def test_a_line_that_does_not_exist_is_refused_before_anything_is_measured() -> None:
    done = run("--sample", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no line or group nothing" in done.stderr
