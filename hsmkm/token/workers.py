"""A process that holds the token, and the calls the orchestrating process sends to it.

Only the worker loads the PKCS#11 module: a deadlock, a crash or a hanging network driver of the module ends the worker,
never its owner. It is a fresh interpreter, not a fork, which no PKCS#11 module survives, and it imports what its calls
name instead of the owner's main module. Functions and values travel by pickle between two processes of one trust.

    with Worker(open_vault, settings) as worker:
        batch = worker.call(provision_batch, order, deadline=60)

The worker runs one call at a time; its owner may call it from several threads, which then wait for each other. It
ignores Ctrl-C, which its owner handles, and ends when its owner does, in the midst of a call if need be.
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Protocol, Self, TypeVar, runtime_checkable

from hsmkm.errors import HsmkmError, TokenUnreachableError
from hsmkm.token.watch import HUNG, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

T = TypeVar("T")
R = TypeVar("R")

_END_SECONDS = 10.0
_MAX_FRAMES = 12
_READY, _VALUE, _ITEM, _END, _STOPPED, _ERROR = "ready", "value", "item", "end", "stopped", "error"
_CALL, _STREAM, _STOP, _CLOSE = "call", "stream", "stop", "close"
_BOOT = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "from hsmkm.token.workers import serve; serve(int(sys.argv[1]))"
)


class WorkerError(HsmkmError):
    """A worker met an error that no code here expects; the message names its type and places, never its values."""


class Worker(Generic[T]):
    """A process that enters `opener(*args)` once and runs functions on what that yields.

    Starting raises what the opener raised. Errors of hsmkm.errors travel as they are; any other arrives as WorkerError.
    A worker that dies, or misses a deadline and is killed, raises TokenUnreachableError, then and ever after.
    `inherit` names file descriptors the worker needs, such as those of a PIN source `fd:`. A worker whose token takes
    longer than `token_seconds` for a call ends, as one that dies; without them it waits.
    """

    def __init__(
        self,
        opener: Callable[..., AbstractContextManager[T]],
        *args: object,
        inherit: Collection[int] = (),
        token_seconds: float | None = None,
    ) -> None:
        self._token_seconds = token_seconds
        self._lock = threading.Lock()
        self._streaming = False
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter with a fixed program
                [sys.executable, "-c", _BOOT, str(theirs.fileno())], pass_fds=(theirs.fileno(), *inherit)
            )
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        try:
            self._send(sys.path)
            self._send((opener, args, token_seconds))
            self._receive(None)
        except BaseException:
            self._kill()
            raise

    @property
    def alive(self) -> bool:
        """Tell whether the worker still runs."""
        return self._process.poll() is None and not self._connection.closed

    def call(self, function: Callable[Concatenate[T, ...], R], *args: object, deadline: float | None = None) -> R:
        """Run `function(context, *args)` in the worker and return what it returns.

        The function and its arguments are pickled, so it stands at the level of a module. A call that takes longer than
        `deadline` seconds ends the worker with TokenUnreachableError: nobody knows what it did.
        """
        with self._exclusive():
            self._send((_CALL, function, args))
            _, value = self._receive(deadline)
            return value  # type: ignore[no-any-return]

    def stream(self, function: Callable[Concatenate[T, ...], Generator[R, None, None]], *args: object) -> Iterator[R]:
        """Run a generator function in the worker and yield what it yields, while the worker works ahead.

        Leaving the iteration early ends the generator in the worker at its next value.
        """
        with self._exclusive():
            self._send((_STREAM, function, args))
            self._streaming = True
        ended = False
        try:
            while True:
                kind, value = self._receive(None)
                if kind == _END:
                    ended = True
                    return
                yield value
        except HsmkmError:
            ended = True
            raise
        finally:
            self._streaming = False
            if not ended and not self._connection.closed:
                self._stop_stream()

    def _stop_stream(self) -> None:
        """Ask for the end, and read up to the answer; what the generator raised until then is raised."""
        failure: HsmkmError | None = None
        self._send((_STOP, None, ()))
        kind = _ITEM
        while kind != _STOPPED:
            try:
                kind, _ = self._receive(None)
            except HsmkmError as error:
                if self._connection.closed:
                    raise
                failure = error
        if failure is not None:
            raise failure

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock:
            if self._streaming:
                raise RuntimeError("a worker takes no call while its stream is read")
            yield

    def _send(self, message: object) -> None:
        if self._connection.closed:
            raise self._gone()
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            self._kill()
            raise self._gone() from error

    def _receive(self, deadline: float | None) -> tuple[str, Any]:
        """Wait for an answer; what ends the waiting early ends the worker, whose answers would be out of step."""
        try:
            answered = self._connection.poll(deadline)
            kind, value = self._connection.recv() if answered else (_ERROR, _late("the token's worker", deadline))
        except (EOFError, ConnectionResetError) as error:
            self._kill()
            raise self._gone() from error
        except BaseException:
            self._kill()
            raise
        if not answered:
            self._kill()
        if kind == _ERROR:
            raise value
        return kind, value

    def _gone(self) -> TokenUnreachableError:
        if self._process.returncode == HUNG:
            return _late("the token", self._token_seconds)
        return TokenUnreachableError(
            f"the token's worker ended with {self._process.returncode}", hint="start again; see its standard error"
        )

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def end(self) -> None:
        """End the worker at once, after the call that is under way; for one whose context is of no use any more."""
        with self._lock:
            self._kill()

    def abandon(self) -> None:
        """End the worker in the midst of a call, which then fails as for a worker that died; from any thread."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let the worker leave its context and end; raises what leaving raised. A worker that is gone stays gone."""
        if self._streaming:
            self._kill()
        if self._connection.closed:
            return
        with self._lock:
            try:
                self._send((_CLOSE, None, ()))
                self._receive(_END_SECONDS)
                self._process.wait(_END_SECONDS)
            finally:
                self._kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._kill()
        else:
            self.close()


def _late(what: str, deadline: float | None) -> TokenUnreachableError:
    return TokenUnreachableError(
        f"{what} did not answer within {deadline} s, and the worker was ended",
        hint="check the token; what was in progress may or may not have happened there",
    )


@runtime_checkable
class BetweenCalls(Protocol):
    """A context that wants to know when no call is under way, to take note of what others did."""

    def between_calls(self) -> None:
        """Take note of it; called before each call."""


def serve(descriptor: int) -> None:
    """Be a worker: read the opener from this socket, enter it, and serve calls until the owner closes or ends.

    It leaves no core file: that would hold the PIN, and every key where the token is software.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection: Connection[Any, Any] = Connection(descriptor)
    threading.Thread(target=_end_with_owner, args=(descriptor,), daemon=True).start()
    try:
        sys.path[:] = connection.recv()
        opener, args, token_seconds = connection.recv()
        if token_seconds is not None:
            watch(token_seconds)
        with opener(*args) as context:
            connection.send((_READY, None))
            _serve_calls(connection, context)
        connection.send((_END, None))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the owner is gone, and nobody is left to tell
    except Exception as error:  # noqa: BLE001 - it travels to the owner
        connection.send((_ERROR, _portable(error)))


def _end_with_owner(descriptor: int) -> None:
    """End this process when the owner's end of the socket is gone: nobody is left who could say what it is at."""
    owner = select.poll()
    owner.register(descriptor, 0)
    owner.poll()
    os._exit(1)


def _serve_calls(connection: Connection[Any, Any], context: object) -> None:
    while True:
        try:
            verb, function, args = connection.recv()
        except (ImportError, AttributeError, TypeError, pickle.UnpicklingError) as error:
            connection.send((_ERROR, _portable(error)))
            continue
        if verb == _CLOSE:
            return
        if verb == _STOP:
            connection.send((_STOPPED, None))
            continue
        try:
            if isinstance(context, BetweenCalls):
                context.between_calls()
            if verb == _STREAM:
                _serve_stream(connection, function(context, *args))
                answer: tuple[str, object] = (_END, None)
            else:
                answer = (_VALUE, function(context, *args))
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001 - it travels to the owner
            connection.send((_ERROR, _portable(error)))


def _serve_stream(connection: Connection[Any, Any], items: Generator[object, None, None]) -> None:
    with closing(items):
        for item in items:
            if connection.poll(0):
                return
            connection.send((_ITEM, item))


def _portable(error: Exception) -> HsmkmError:
    """Return an error that survives pickling: one of ours as it is, any other without its values."""
    if isinstance(error, HsmkmError):
        try:
            copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made in this line
        except Exception as unpicklable:  # noqa: BLE001 - an exception's constructor may raise anything
            error = unpicklable
        else:
            if type(copy) is type(error):
                return error
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    places = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    if isinstance(error, OSError) and error.strerror:
        return WorkerError(
            f"the system refused a file or connection at {places}: {error.strerror}",
            hint="see whether the disk has room and the home folder's files are yours",
        )
    return WorkerError(
        f"the token's worker met {type(error).__name__} at {places or 'an unknown place'}",
        hint="this is a defect; report it with this line",
    )
