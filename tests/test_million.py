"""scripts/million takes meters through every phase, and goes on where it stopped; its figures mean nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "million.py"
PHASES = (
    "provision",
    "export",
    "import",
    "factory accepts",
    "register",
    "concentrator takes",
    "utility accepts",
)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_every_phase_is_taken_once_and_a_single_meter_is_measured(tmp_path: Path) -> None:
    plan = ("--meters", 3, "--folder", tmp_path / "run")
    done = run(*plan)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert tuple(one["name"] for one in found["phases"]) == PHASES
    assert all(one["rate"] > 0 and one["party_mb"] > 0 for one in found["phases"])
    assert [one["meters"] for one in found["costs"]] == [3]
    assert all(value > 0 for one in found["costs"] for value in one["seconds"].values())

    again = run(*plan)
    assert json.loads(again.stdout) == found
    assert again.stderr == ""

    other = run("--meters", 4, "--folder", tmp_path / "run")
    assert (other.returncode, other.stdout) == (2, "")
    assert "is that of another run" in other.stderr
