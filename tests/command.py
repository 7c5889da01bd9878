"""How commands end: what tests ask of every error that a person sees."""

from __future__ import annotations

import json
import subprocess
from typing import Any

Done = subprocess.CompletedProcess[str]


def failed(done: Done, code: int) -> tuple[str, list[str]]:
    """Check that a command failed as people are told: `error:` and `hint:`, no more; its error and what led to it."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    *before, error, hint = done.stderr.splitlines()
    assert error.startswith("error: "), done.stderr
    assert hint.startswith("hint: "), done.stderr
    assert len(hint) > len("hint: ")
    assert "this is a defect" not in hint
    assert all(line.startswith(("fault: ", "reason: ")) for line in before), done.stderr
    return error.removeprefix("error: "), [line.partition(": ")[2] for line in before]


def results(done: Done) -> list[dict[str, Any]]:
    """Take the results that a command wrote to stdout as JSON."""
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
