"""What the demo stands on: the folder with every home, the processes that work on it, and how it talks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HSMKM = Path(sys.executable).with_name("hsmkm")
COMMAND_SECONDS = 600
STOP_SECONDS = 20
STEPS = 7
ENDING = (signal.SIGINT, signal.SIGTERM)

Row = dict[str, Any]


class DemoError(Exception):
    """A step did not come to its end; the message says which command failed and what it said."""


def say(text: str) -> None:
    """Talk, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def tell(text: str) -> None:
    """Write a result, on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def step(number: int, party: str, text: str) -> None:
    """Write the one line of a step."""
    tell(f"{number} of {STEPS}  {party}: {text}")


def count(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off to the end, so that who stops the processes knows of each that was started.

    Not by a mask of signals, which children inherit. Only the main thread is ever disturbed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in ENDING}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)


@dataclass(slots=True)
class Processes:
    """Every process that the demo started and that may still run, so that none outlives it."""

    running: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, command: Sequence[str], errors: Any, environment: dict[str, str]) -> subprocess.Popen[str]:  # noqa: ANN401 - what Popen takes
        """Start a process in a session of its own: Ctrl-C reaches the demo alone, which stops the others in order."""
        with undisturbed(), self.lock:
            if self.stopped:
                raise DemoError("the demo is being stopped")
            process = subprocess.Popen(  # noqa: S603 - our own program
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | environment,
                start_new_session=True,
            )
            self.running[process.pid] = process
        return process

    def forget(self, process: subprocess.Popen[str]) -> None:
        """Take note that a process has ended."""
        with undisturbed(), self.lock:
            self.running.pop(process.pid, None)

    def stop(self, process: subprocess.Popen[str]) -> int:
        """End a process with SIGTERM, or SIGKILL where it does not listen; gives its exit code."""
        process.terminate()
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        _end_session(process.pid)
        self.forget(process)
        return code

    def stop_all(self) -> None:
        """End whatever still runs, the newest first, and start nothing more."""
        with self.lock:
            self.stopped = True
            left = list(self.running.values())
        for process in reversed(left):
            self.stop(process)


def _end_session(leader: int) -> None:
    """Kill what is left of a process's session: a worker that was still starting when its command was ended."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


@dataclass(slots=True)
class Lab:
    """The folder with every home, and the processes that work on it."""

    folder: Path
    meters: int
    suites: tuple[int, ...]
    profile: str
    processes: Processes = field(default_factory=Processes)

    def suite(self, place: int) -> int:
        """Give the suite of a meter by its place in the order: the suites take turns."""
        return self.suites[place % len(self.suites)]

    def home(self, party: str) -> Path:
        """Name a party's home folder."""
        return self.folder / party

    def run(self, party: str, *arguments: str | Path) -> list[Row]:
        """Run `hsmkm --home PARTY ARGUMENTS` and give its results; DemoError with its stderr where it fails."""
        command = [str(HSMKM), "--home", str(self.home(party)), "--output", "json", *map(str, arguments)]
        process = self.processes.start(command, subprocess.PIPE, {})
        output = self.finished(process, f"{party}: {shown(arguments)}")
        rows: list[Row] = json.loads(output)
        return rows

    def finished(self, process: subprocess.Popen[str], name: str) -> str:
        """Wait for a process and give what it wrote to stdout; DemoError with its stderr where it fails."""
        try:
            output, errors = process.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"{name} did not end within {COMMAND_SECONDS} s") from error
        self.processes.forget(process)
        if process.returncode:
            raise DemoError(f"{name} ended with exit code {process.returncode}\n{errors.rstrip()}")
        return output

    @contextmanager
    def serving(
        self, name: str, *arguments: str | Path, environment: dict[str, str] | None = None
    ) -> Iterator[list[int]]:
        """Run a process that prints `READY PORT...`, give the ports, and stop it at the end."""
        log = self.folder / "logs" / f"{name}.log"
        command = [str(HSMKM), *map(str, arguments)]
        with log.open("w", encoding="utf-8") as errors:
            process = self.processes.start(command, errors, environment or {})
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        ready = process.stdout.readline().split()
        if ready[:1] != ["READY"]:
            code = self.processes.stop(process)
            raise DemoError(f"{name} did not start, exit code {code}\n{log.read_text(encoding='utf-8').rstrip()}")
        yield [int(port) for port in ready[1:]]
        code = self.processes.stop(process)
        if code:
            raise DemoError(f"{name} ended with exit code {code}\n{log.read_text(encoding='utf-8').rstrip()}")


def shown(arguments: Sequence[str | Path]) -> str:
    """Write a command's words up to its first option or file, for messages."""
    words = [str(word) for word in arguments]
    return " ".join(["hsmkm", *words[:2]])


def configure(home: Path, section: str, key: str, value: str) -> None:
    """Set one string in hsmkm.toml, as a user does with an editor."""
    path = home / "hsmkm.toml"
    before, header, rest = path.read_text(encoding="utf-8").partition(f"[{section}]\n")
    rest, found = re.subn(rf"(?m)^{key} = \"[^\"]*\"", f'{key} = "{value}"', rest, count=1)
    if not found:
        raise DemoError(f"{path} has no setting {section}.{key}")
    path.write_text(before + header + rest, encoding="utf-8")


def private_file(path: Path, text: str) -> None:
    """Write a file that nobody else can read, from its first moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def together(lab: Lab, tasks: Sequence[Callable[[], Any]], workers: int) -> list[Any]:
    """Run tasks side by side; the first that fails ends the others' commands and is raised."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            lab.processes.stop_all()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
