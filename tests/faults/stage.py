"""Runs operations as forks of one process that has everything loaded but no token: a run takes a tenth of a second.

A request is a line of JSON on stdin. The answers are lines on stdout: the fork's process number at once, and how it
ended. A fork that is `held` begins when a tracer answers its getpgid with `LET_GO`, so that nothing of it is missed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from hsmkm.token import workers
from tests.faults import broken
from tests.faults.operations import OPERATIONS, TALK, Answer, Place

LET_GO = 4242
ROOT = Path(__file__).resolve().parent.parent.parent
_OCTETS = 1 << 16


@dataclass(frozen=True, slots=True)
class Request:
    """What a fork is to do: `act` an operation, or do it `again` and check; in a `broken` variant if one is named."""

    verb: str
    operation: str
    place: Place
    held: bool = False
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a fork ended: the signal that killed it or 0, and what it answered; None where it never came to that."""

    signal: int
    answer: Answer | None


class Stage:
    """The stage's process, seen from the harness."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.stage"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def begin(self, request: Request) -> int:
        """Fork, and give the number of the process."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def ended(self) -> Ended:
        """Wait until the fork ended."""
        said = json.loads(self._line())
        return Ended(said["signal"], None if said["answer"] is None else Answer(**said["answer"]))

    def run(self, request: Request) -> Ended:
        """Fork, and wait until it ended."""
        self.begin(request)
        return self.ended()

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the stage ended"
        return line


def main() -> None:
    """Serve requests until stdin ends."""
    for line in sys.stdin:
        said = json.loads(line)
        request = Request(**{**said, "place": Place(**said["place"])})
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            _be_the_fork(request, writing)
        os.close(writing)
        _tell(sys.stdout, process)
        _tell(sys.stdout, _outcome(process, reading))


def _outcome(process: int, reading: int) -> dict[str, Any]:
    said = b""
    while octets := os.read(reading, _OCTETS):
        said += octets
    os.close(reading)
    _, status = os.waitpid(process, 0)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return {"signal": killed, "answer": json.loads(said) if said.endswith(b"\n") else None}


def _tell(stream: TextIO, value: object) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _be_the_fork(request: Request, writing: int) -> None:
    while request.held and os.getpgid(0) != LET_GO:
        time.sleep(0.001)
    try:
        if request.broken:
            broken.VARIANTS[request.broken]()
        operation = (OPERATIONS | {"talk": TALK})[request.operation]
        answer = operation.run(request.place, request.verb)
    except Exception as error:  # noqa: BLE001 - it is told as a worker tells it to its owner
        told = workers._portable(error)
        answer = Answer(error=f"{type(told).__name__}: {told.message}", hint=told.hint)
    os.write(writing, json.dumps(asdict(answer)).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
