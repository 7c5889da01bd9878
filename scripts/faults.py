"""Breaks hsmkm on purpose, again and again, and checks each time that its promises held.

Each harness under tests/faults prints one line: how many injections hit, how many ended in a violation, and how many
violations its negative control found, a variant that was broken on purpose.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.faults.report import Report, load, names

APART = ("counters", "simulation")
"""Kills at random moments and worlds made by seeds: there is no end to them, so they are timed by themselves."""

EPILOG = "Exit code: 0 when nothing was violated and every negative control was found out; else 1. See docs/faults.md."


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__, epilog=EPILOG)
    known = names()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"harnesses, all without it: {', '.join(known)}")
    parser.add_argument("--sample", type=int, metavar="N", help="about so many injections of each, not all")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="what a sample is chosen by (1)")
    parser.add_argument("--json", action="store_true", help="one JSON line for each harness")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"there is no harness {', '.join(unknown)}; there are: {', '.join(known)}")
    if options.sample is not None and options.sample < 1:
        parser.error("--sample is a number of 1 or more")
    options.names = options.names or known
    return options


def show(outcome: Report, seconds: float, *, as_json: bool) -> None:
    """Write the line of a harness to stdout, and what it found to stderr."""
    if as_json:
        line = json.dumps(asdict(outcome) | {"passed": outcome.passed, "seconds": round(seconds, 1)})
    else:
        line = f"{outcome.line()} ({seconds:.0f} s)"
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    sys.stderr.writelines(f"  {outcome.name}: {violation}\n" for violation in outcome.violations)


def main(arguments: list[str]) -> int:
    """Run the harnesses that are asked for, one after another: each has the whole machine."""
    options = parsed(arguments)
    passed, took = True, dict[str, float]()
    for name in options.names:
        began = time.monotonic()
        outcome = load(name).run(options.sample, options.seed)
        took[name] = time.monotonic() - began
        show(outcome, took[name], as_json=options.json)
        passed = passed and outcome.passed
    if not options.json:
        sys.stdout.write(f"{in_all(took)}\n")
    return 0 if passed else 1


def in_all(took: dict[str, float]) -> str:
    """Say how long it took, without the harnesses that only become surer the longer they run, and these by name."""
    rest = sum(seconds for name, seconds in took.items() if name not in APART) / 60
    apart = [f"{name}: {took[name] / 60:.0f} min" for name in APART if name in took]
    return f"in all: {rest:.0f} min" + (f", and apart from it {', '.join(apart)}" if apart else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
