"""Commands that are held at their last word: standard output is a full pipe, so that the result cannot be written.

A command that is held has done everything, ended its worker, and still has all its memory: what it ever got to know
and did not wipe can be looked for.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.realm import ACTOR, HSMKM, Realm

PATIENCE = 180.0
_FILLER = b"\n" * 4096
_ZOMBIE = "Z"
_WRITES_STDOUT = (["1", "0x1"], ["64", "0x1"])  # the call write, on x86-64 and on AArch64


@dataclass
class Held:
    """A command of ours: its process, its worker's while that lives, and in the end what it said."""

    process: int
    command: list[str]
    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int = -1

    def workers(self) -> list[int]:
        """The processes that this one started and that still run."""
        return children(self.process)


def children(process: int) -> list[int]:
    """The child processes of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
            if int(parent) == process and state != _ZOMBIE:
                found.append(int(path.parent.name))
    return found


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def hold(
    realm: Realm,
    name: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[Held]:
    """Start a command, give it at once, and let it end at the end of the context; `wait_held` waits in between.

    `folder` is where it runs, that of this process without it.
    """
    command = _command(realm, name, *arguments)
    ours, theirs = os.pipe()
    filled = _fill(theirs)
    process = subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, **(environment or {})}, cwd=folder
    )
    os.close(theirs)
    assert process.stderr is not None
    held = Held(process.pid, command)
    heard: list[bytes] = []
    listener = threading.Thread(target=lambda: heard.append(process.stderr.read() if process.stderr else b""))
    listener.start()
    try:
        yield held
    finally:
        said = _drain(ours)
        held.exit_code = process.wait(PATIENCE)
        listener.join(PATIENCE)
        process.stderr.close()
        held.stdout, held.stderr = said[filled:], b"".join(heard)


@contextmanager
def listening(
    realm: Realm, name: str, *arguments: str, environment: Mapping[str, str], folder: Path | None = None
) -> Iterator[tuple[Held, int]]:
    """Run a command that listens until it is stopped, in a folder; the process and its port."""
    command = _command(realm, name, *arguments)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **environment}, bufsize=0, cwd=folder
        )
        assert process.stdout is not None
        held = Held(process.pid, command)
        try:
            first = process.stdout.readline()
            assert first.startswith(b"READY "), first
            yield held, int(first.split()[1])
        finally:
            process.terminate()
            said = process.stdout.read()
            held.exit_code = process.wait(PATIENCE)
            process.stdout.close()
            errors.seek(0)
            held.stdout, held.stderr = first + said, errors.read()


def _command(realm: Realm, name: str, *arguments: str) -> list[str]:
    return [str(HSMKM), "--home", str(realm.home(name)), "--output", "json", "--actor", ACTOR, *arguments]


def wait_held(held: Held) -> None:
    """Wait until the command writes its result, which the full pipe does not take."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if _state(held.process) == _ZOMBIE:
            break  # it ended without a result
        call = Path(f"/proc/{held.process}/syscall").read_text().split()[:2]
        if call in _WRITES_STDOUT and not held.workers():
            return
        time.sleep(0.02)
    raise AssertionError(f"{held.command} did not come to its result")


def _fill(pipe: int) -> int:
    os.set_blocking(pipe, False)
    filled = 0
    try:
        while True:
            filled += os.write(pipe, _FILLER)
    except BlockingIOError:
        os.set_blocking(pipe, True)
        return filled


def _drain(pipe: int) -> bytes:
    said = b""
    while more := os.read(pipe, 65536):
        said += more
    os.close(pipe)
    return said
