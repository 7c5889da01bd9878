"""A process that feeds parsers: `python -m tests.faults.fuzz_child`, with a job in JSON on stdin.

A parser may raise the errors that it names and nothing else, within a second of CPU time and `ROOM` octets of memory
more than the process had. What it does beside that is told in a line of JSON on stdout; a line names each parser
before it is fed, so that a death is nobody else's.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.fuzz_parsers import Parser

CPU_SECONDS = 1.0
ROOM = 128 << 20
_PAGE = resource.getpagesize()
_SHOWN = 64


class SlowError(BaseException):
    """A parser took more than its time; not an Exception, so that no parser takes it for one."""


def main() -> None:
    """Do the job on stdin: `guided` or not, how many inputs for each parser, and the seed."""
    job = json.load(sys.stdin)
    with _instrumented(guided=job["guided"]):
        from tests.faults.fuzz_broken import BROKEN, HIDDEN, broken  # noqa: PLC0415 - imported where it is instrumented
        from tests.faults.fuzz_parsers import parsers  # noqa: PLC0415 - as above
    known = {parser.name: parser for parser in (*parsers(), *broken({**BROKEN, **HIDDEN}))}
    feed = _guide if job["guided"] else _mutate
    for name, count in job["counts"].items():
        _tell(began=name)
        _tell(parser=name, inputs=feed(known[name], count, job["seed"]))


@contextlib.contextmanager
def _instrumented(*, guided: bool) -> Iterator[None]:
    if not guided:
        yield
        return
    import atheris  # noqa: PLC0415 - there are machines without it

    with atheris.instrument_imports(include=["hsmkm", "tests.faults"], enable_loader_override=False):
        yield


def _tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _mutate(parser: Parser, count: int, seed: int) -> int:
    from tests.faults.fuzz_inputs import mutants  # noqa: PLC0415 - after what is instrumented

    inputs = mutants(parser.seeds(), Random(f"{seed} {parser.name}"), count)  # noqa: S311 - the same inputs again
    with _bounds():
        guard = Guard(parser)
        with contextlib.suppress(SlowError, MemoryError):
            for octets in inputs:
                guard(octets)
    return len(inputs)


def _guide(parser: Parser, count: int, seed: int) -> int:
    """Let libFuzzer look for inputs that reach new code; it ends its process, so that each parser has one."""
    seeds = parser.seeds()
    child = os.fork()
    if not child:
        _search(parser, seeds, count, seed)
    _, status = os.waitpid(child, 0)
    if status:
        _tell(parser=parser.name, error=f"the process ended with {os.waitstatus_to_exitcode(status)}", input="")
    return count


def _search(parser: Parser, seeds: Sequence[bytes], count: int, seed: int) -> None:
    import atheris  # noqa: PLC0415 - there are machines without it

    folder = Path(tempfile.mkdtemp(prefix="hsmkm-corpus-"))
    for number, octets in enumerate(seeds):
        (folder / str(number)).write_bytes(octets)
    options = [
        f"-runs={len(seeds) + count}",
        f"-seed={seed}",
        "-max_len=8192",
        "-rss_limit_mb=0",
        "-verbosity=0",
        "-timeout=60",
    ]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    guard = Guard(parser)

    def guarded(octets: bytes) -> None:
        try:
            guard(octets)
        except (SlowError, MemoryError):
            os._exit(0)

    with _bounds():
        atheris.Setup([sys.argv[0], *options, str(folder)], guarded)
        atheris.Fuzz()


class Guard:
    """Feeds one input to a parser and tells what it must not do, each kind once.

    Raises SlowError or MemoryError where it took too much: it is fed no more, for the next would take as long.
    """

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._told: set[str] = set()

    def __call__(self, octets: bytes) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
        try:
            self._parser.parse(bytes(octets))
        except self._parser.errors:
            pass
        except (SlowError, MemoryError) as error:
            self._tell(error, octets)
            raise
        except Exception as error:  # noqa: BLE001 - what a parser must not raise is what is looked for
            self._tell(error, octets)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _tell(self, error: BaseException, octets: bytes) -> None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:_SHOWN]}"
        if what not in self._told:
            self._told.add(what)
            _tell(parser=self._parser.name, error=what, input=bytes(octets).hex())


@contextlib.contextmanager
def _bounds() -> Iterator[None]:
    def slow(*_: Any) -> None:  # noqa: ANN401 - a signal's number and frame
        raise SlowError

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGVTALRM, slow)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * _PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGVTALRM, before)


if __name__ == "__main__":
    main()
