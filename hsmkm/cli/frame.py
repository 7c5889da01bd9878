"""What every command shares: where the home folder is, who acts, how results are shown, and how errors end.

Results go to stdout as a table, one JSON document, or one JSON line each; talk goes to stderr. An error is two lines,
`error:` and `hint:`, after the faults or reasons that it has.
"""

from __future__ import annotations

import getpass
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.config import Settings, load_settings
from hsmkm.errors import HsmkmError, InputError, LoginError, RefusedError
from hsmkm.token.standing import Login, StandingWorker
from hsmkm.token.uri import pin_descriptors
from hsmkm.token.workers import Worker

if TYPE_CHECKING:
    from hsmkm.steps import party
    from hsmkm.steps.party import Party
else:
    (party,) = deferred("hsmkm.steps", "party")


T = TypeVar("T")


class Output(StrEnum):
    """How results are written to stdout."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class Frame:
    """The options before the noun: home folder, form of the results, and who is named in the audit log."""

    home: Path
    output: Output
    actor: str
    login: Login = field(default_factory=Login, repr=False, compare=False)

    def settings(self) -> Settings:
        """Read the home folder's settings."""
        return load_settings(self.home)


_running: ContextVar[Frame] = ContextVar("running")


def enter(entered: Frame) -> None:
    """Set the frame of the command that is about to run."""
    _running.set(entered)


def frame() -> Frame:
    """Give the running command's frame."""
    return _running.get()


def default_actor() -> str:
    """Name the person by the login, as the audit log will."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


@contextmanager
def party_worker() -> Iterator[Worker[Party]]:
    """Spawn the worker that alone loads the PKCS#11 module, reads the PIN and opens this party."""
    here = frame()
    with worker_starter(party.open_party, here.home, here.actor)() as worker:
        yield worker


@contextmanager
def inspecting_worker() -> Iterator[Worker[Party]]:
    """Spawn the same worker for a check of the store, which it opens whatever is wrong with it."""
    here = frame()
    with worker_starter(party.open_inspection, here.home, here.actor)() as worker:
        yield worker


@contextmanager
def standing_worker() -> Iterator[StandingWorker[Party]]:
    """Spawn the same worker for a process that runs for long, and replace it when it died or lost its token."""
    here = frame()
    with StandingWorker(worker_starter(party.open_party, here.home, here.actor), login=here.login) as worker:
        yield worker


def worker_starter(
    opener: Callable[..., AbstractContextManager[T]], *args: object, threads: int = 1
) -> Callable[[], Worker[T]]:
    """Give what starts a worker of this home, in any thread: with the PIN's files, and the token's time to answer."""
    settings = frame().settings()
    seconds = settings.token.answer_seconds
    return partial(Worker, opener, *args, inherit=inherited(settings), token_seconds=seconds, threads=threads)


def inherited(settings: Settings) -> tuple[int, ...]:
    """Name the open files in which a worker finds the PINs of source `fd:`; LoginError if one is not open."""
    found = pin_descriptors(settings.token.pin, settings.token.so_pin)
    for number in found:
        try:
            os.fstat(number)
        except OSError as error:
            raise LoginError(f"file descriptor {number} of the PIN is not open", hint=f"add {number}<FILE") from error
    return found


def talk(text: str) -> None:
    """Say something that is not a result, on stderr: a line whose parts may come from a peer or from a file of his."""
    typer.echo(printable(text), err=True)


def printable(text: str) -> str:
    """Put a question mark for what a terminal would obey, or no encoding can write; line ends and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)


def show(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Write results to stdout in the form asked for; a table has only the named columns."""
    output = frame().output
    if output is Output.JSON:
        typer.echo(json.dumps(list(rows), default=str, indent=2))
    elif output is Output.JSONL:
        for row in rows:
            typer.echo(json.dumps(row, default=str))
    else:
        _table(rows, columns)


def _table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only tables need it, and it loads for long
    from rich.table import Table  # noqa: PLC0415 - as above

    table = Table(*[name.replace("_", " ") for name in columns], box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*["" if row.get(name) is None else printable(str(row.get(name))) for name in columns])
    width = None if sys.stdout.isatty() else 1000
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        typer.echo(line.rstrip())


def explain(error: HsmkmError) -> None:
    """Write an error to stderr: its faults or reasons, then what happened and what to do."""
    if isinstance(error, InputError):
        for fault in error.faults:
            talk(f"fault: {fault}")
    if isinstance(error, RefusedError):
        for reason in error.reasons:
            talk(f"reason: {reason}")
    talk(f"error: {error.message}")
    talk(f"hint: {error.hint or error.advice}")


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code: 0 done, 1 refused, 2 usage, 3 to 7 as errors say, 130 interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="hsmkm")
    except HsmkmError as error:
        explain(error)
        return error.exit_code
    except OSError as error:
        explain(_refused_by_system(error))
        return 1
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _refused_by_system(error: OSError) -> HsmkmError:
    place = f" {error.filename}" if error.filename else ""
    return HsmkmError(
        f"the system refused{place}: {error.strerror or type(error).__name__}",
        hint="see whether the disk has room and the files are yours",
    )


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)
