"""Fuzzing: every parser of what others send or write, with mutants of real inputs and with inputs that coverage finds.

A parser may only raise the errors that it names, in bounded time and memory. Its negative control are parsers that are
broken on purpose: one believes a length, one never ends, one takes the room that it is asked for, one nests without
end, one fails where only coverage leads.
Atheris (libFuzzer, led by coverage) runs where it is installed; the mutants run everywhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.faults.fuzz_broken import BROKEN, HIDDEN, broken
from tests.faults.fuzz_parsers import parsers
from tests.faults.report import Report

MUTANTS, GUIDED = 1_000, 10_000
"""Inputs for each parser in a whole run."""

CONTROL = 1_000
PROCESSES = 2
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Fed:
    """What became of a job: how many inputs were fed, and which parser did what it must not do."""

    inputs: int = 0
    wrong: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Fed) -> Fed:
        return Fed(self.inputs + other.inputs, self.wrong + other.wrong)


def run(sample: int | None, seed: int) -> Report:
    """Feed every parser; of `sample` inputs a fifth is mutants that are fed alone, the rest is led by coverage."""
    names = [parser.name for parser in parsers()]
    mutated = MUTANTS if sample is None else max(sample // len(names) // (5 if guided() else 1), 1)
    led = GUIDED if sample is None else max(sample // len(names) - mutated, 1)
    controls = [parser.name for parser in broken(BROKEN)]
    fed = feed(dict.fromkeys(names, mutated) | dict.fromkeys(controls, CONTROL), seed, guided=False)
    if guided():
        hidden = [parser.name for parser in broken(HIDDEN)]
        controls += hidden
        fed += feed(dict.fromkeys(names, led) | dict.fromkeys(hidden, 50 * CONTROL), seed, guided=True)
    caught = [name for name, _ in fed.wrong if name in controls]
    violations = [f"{name}: {what}" for name, what in fed.wrong if name not in controls]
    violations += [f"{name}: the harness did not see it" for name in controls if name not in caught]
    return Report("fuzz", fed.inputs, tuple(violations), len(caught))


def guided() -> bool:
    """Tell whether coverage can lead here."""
    return find_spec("atheris") is not None


def feed(counts: Mapping[str, int], seed: int, *, guided: bool) -> Fed:
    """Feed each parser as many inputs as `counts` says, in two processes."""
    parts = [list(counts.items())[start::PROCESSES] for start in range(PROCESSES)]
    jobs = [{"guided": guided, "counts": dict(part), "seed": seed} for part in parts if part]
    with ThreadPoolExecutor(PROCESSES) as pool:
        return sum(pool.map(_feed, jobs), Fed())


def _feed(job: dict[str, object]) -> Fed:
    command = [sys.executable, "-m", "tests.faults.fuzz_child"]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(job), capture_output=True, text=True, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    wrong = [(line["parser"], f"{line['error']}, input {line['input'] or '?'}") for line in told if "error" in line]
    if done.returncode:
        last = next((line["began"] for line in reversed(told) if "began" in line), "no parser yet")
        wrong.append((last, f"the process ended with {done.returncode}: {done.stderr[-500:]}"))
    return Fed(sum(line.get("inputs", 0) for line in told), tuple(wrong))
