"""Measures each line of work beside its floor, in the same run on the same machine, and says what it reaches.

The floor is a C loop that makes the same PKCS#11 calls on the same kind of keys and nothing else, or what a line names.
Both sides are measured in turn, round after round; a line's figures are the medians of its rounds. Ratios tell
something wherever it runs; rates only of this machine.

A line is added as a function `lines(lab)` in a module scripts/bench_of_NAME.py, which is found by its name; see
scripts/bench_line.py for what a line is, and scripts/bench_lab.py for the homes and the C loop that it can use.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_lab import Lab
from bench_line import Figure, Line, machine, measured, modules

EPILOG = """\
Exit code: 0 when every line that has a figure to reach reached it, or of a sample; else 1. See docs/performance.md."""


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    known = modules()
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = f"lines, or groups of them, all without it; the groups: {', '.join(known)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each line (5)")
    parser.add_argument("--sample", action="store_true", help="one short round of each line, to see that it runs")
    parser.add_argument("--json", action="store_true", help="one JSON document with every figure")
    parser.add_argument("--write", action="store_true", help="write the results into docs/performance.md, and plots")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds is a number of 1 or more")
    if options.sample and options.write:
        parser.error("the figures of a sample mean nothing, and are not written")
    return options


def chosen(lab: Lab, names: list[str]) -> list[tuple[str, Line]]:
    """Give the lines that are asked for, each with its group; LookupError for a name that is neither."""
    found = [(group, line) for group, module in modules().items() for line in module.lines(lab)]
    unknown = [name for name in names if not any(name in (group, line.name) for group, line in found)]
    if unknown:
        raise LookupError(f"there is no line or group {', '.join(unknown)}")
    return [(group, line) for group, line in found if not names or group in names or line.name in names]


def measure_all(options: argparse.Namespace) -> list[Figure]:
    """Measure the lines one after another: each has the whole machine."""
    found = []
    with Lab.open(sample=options.sample) as lab:
        for group, line in chosen(lab, options.names):
            with lab.alone():
                figure = measured(group, line, 1 if options.sample else options.rounds, sample=options.sample)
            found.append(figure)
            if not options.json:
                sys.stdout.write(f"{figure.text()}\n")
                sys.stdout.flush()
    return found


def main(arguments: list[str]) -> int:
    """Measure, show, and tell by the exit code whether every figure was reached."""
    options = parsed(arguments)
    try:
        found_on = machine()
        figures = measure_all(options)
    except LookupError as error:
        sys.stderr.write(f"error: {error.args[0]}\nhint: scripts/bench --help names the groups\n")
        return 2
    document = {"machine": found_on, "sample": options.sample, "lines": [figure.document() for figure in figures]}
    if options.json:
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    if options.write:
        from bench_write import write  # noqa: PLC0415 - nothing else draws

        write(document)
    return int(not options.sample and any(figure.reached is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
