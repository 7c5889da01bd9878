"""A process that holds the token, and the calls the orchestrating process sends to it.

Only the worker loads the PKCS#11 module: a deadlock, a crash or a hanging network driver of the module ends the worker,
never its owner. It is a fresh interpreter, not a fork, which no PKCS#11 module survives, and it imports what its calls
name instead of the owner's main module. Functions and values travel by pickle between two processes of one trust.

    with Worker(open_vault, settings) as worker:
        batch = worker.call(provision_batch, order, deadline=60)

The worker has one thread or more, and runs as many calls at once; its owner may call it from any number of threads,
which then wait for each other. Each thread of the worker has a PKCS#11 session of its own (`hsmkm.token.session`). It
ignores Ctrl-C, which its owner handles, and ends when its owner does, in the midst of a call if need be.
"""

from __future__ import annotations

import gc
import os
import pickle
import queue
import resource
import select
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection as Link
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Protocol, Self, TypeVar, runtime_checkable

from hsmkm.errors import HsmkmError, TokenUnreachableError
from hsmkm.token.gate import Gate
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
    "import gc, signal, sys; gc.disable(); "
    "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "from hsmkm.token.workers import serve; serve(*map(int, sys.argv[1:]))"
)


class WorkerError(HsmkmError):
    """A worker met an error that no code here expects; the message names its type and places, never its values."""


class Worker(Generic[T]):
    """A process that enters `opener(*args)` once and runs functions on what that yields.

    Starting raises what the opener raised. Errors of hsmkm.errors travel as they are; any other arrives as WorkerError.
    A worker that dies, or misses a deadline and is killed, raises TokenUnreachableError, then and ever after.
    `inherit` names file descriptors the worker needs, such as those of a PIN source `fd:`. A worker whose token takes
    longer than `token_seconds` for a call ends, as one that dies; without them it waits. It runs `threads` calls at
    once, each through a socket and in a thread of its own.
    """

    def __init__(
        self,
        opener: Callable[..., AbstractContextManager[T]],
        *args: object,
        inherit: Collection[int] = (),
        token_seconds: float | None = None,
        threads: int = 1,
    ) -> None:
        self._token_seconds = token_seconds
        self._ending = threading.Lock()
        self._counting = threading.Lock()
        self._streams = 0
        self._threads = threads
        pairs = [socket.socketpair() for _ in range(threads)]
        theirs = [end.fileno() for _, end in pairs]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter with a fixed program
            [sys.executable, "-c", _BOOT, *map(str, theirs)], pass_fds=(*theirs, *inherit)
        )
        for _, end in pairs:
            end.close()
        links: list[Link[Any, Any]] = [Link(end.detach()) for end, _ in pairs]
        self._first = first = links[0]
        self._free: queue.LifoQueue[Link[Any, Any]] = queue.LifoQueue()
        try:
            self._send(first, sys.path)
            self._send(first, (opener, args, token_seconds))
            self._receive(first, None)
        except BaseException:
            self._kill(*links)
            raise
        for link in reversed(links):
            self._free.put(link)

    @property
    def alive(self) -> bool:
        """Tell whether the worker still runs."""
        return self._process.poll() is None and not self._first.closed

    def call(self, function: Callable[Concatenate[T, ...], R], *args: object, deadline: float | None = None) -> R:
        """Run `function(context, *args)` in the worker and return what it returns.

        The function and its arguments are pickled, so it stands at the level of a module. A call that takes longer than
        `deadline` seconds ends the worker with TokenUnreachableError: nobody knows what it did.
        """
        with self._link() as link:
            self._send(link, (_CALL, function, args))
            _, value = self._receive(link, deadline)
            return value  # type: ignore[no-any-return] # it travelled by pickle

    def stream(
        self, function: Callable[Concatenate[T, ...], Generator[R, None, None]], *args: object
    ) -> Generator[R, None, None]:
        """Run a generator function in the worker and yield what it yields, while the worker works ahead.

        Leaving the iteration early ends the generator in the worker at its next value.
        """
        with self._link() as link:
            self._send(link, (_STREAM, function, args))
            with self._streaming():
                yield from self._items(link)

    def _items(self, link: Link[Any, Any]) -> Iterator[Any]:
        ended = False
        try:
            while True:
                kind, value = self._receive(link, None)
                if kind == _END:
                    ended = True
                    return
                yield value
        except HsmkmError:
            ended = True
            raise
        finally:
            if not ended and not link.closed:
                self._stop_stream(link)

    def _stop_stream(self, link: Link[Any, Any]) -> None:
        """Ask for the end, and read up to the answer; what the generator raised until then is raised."""
        failure: HsmkmError | None = None
        self._send(link, (_STOP, None, ()))
        kind = _ITEM
        while kind != _STOPPED:
            try:
                kind, _ = self._receive(link, None)
            except HsmkmError as error:
                if link.closed:
                    raise
                failure = error
        if failure is not None:
            raise failure

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        """Count the streams that are read: each has a thread of the worker to itself."""
        with self._counting:
            self._streams += 1
        try:
            yield
        finally:
            with self._counting:
                self._streams -= 1

    @contextmanager
    def _link(self) -> Iterator[Link[Any, Any]]:
        """Wait for a thread of the worker that is free."""
        if self._streams >= self._threads:
            raise RuntimeError("a worker takes no call while its stream is read")
        link = self._free.get()
        try:
            yield link
        finally:
            self._free.put(link)

    def _send(self, link: Link[Any, Any], message: object) -> None:
        if link.closed:
            raise self._gone()
        try:
            link.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            self._kill(link)
            raise self._gone() from error

    def _receive(self, link: Link[Any, Any], deadline: float | None) -> tuple[str, Any]:
        """Wait for an answer; what ends the waiting early ends the worker, whose answers would be out of step."""
        try:
            answered = link.poll(deadline)
            kind, value = link.recv() if answered else (_ERROR, _late("the token's worker", deadline))
        except (EOFError, ConnectionResetError) as error:
            self._kill(link)
            raise self._gone() from error
        except BaseException:
            self._kill(link)
            raise
        if not answered:
            self._kill(link)
        if kind == _ERROR:
            raise value
        return kind, value

    def _gone(self) -> TokenUnreachableError:
        if self._process.returncode == HUNG:
            return _late("the token", self._token_seconds)
        return TokenUnreachableError(
            f"the token's worker ended with {self._process.returncode}", hint="start again; see its standard error"
        )

    def _kill(self, *links: Link[Any, Any]) -> None:
        """End the process; each thread that waits for it reads the end, and closes the link that it holds."""
        self.abandon()
        for link in links:
            link.close()

    def end(self) -> None:
        """End the worker at once, after the calls that are under way; for one whose context is of no use any more."""
        with self._all_links() as links:
            self._kill(*links)

    def abandon(self) -> None:
        """End the worker in the midst of a call, which then fails as for a worker that died; from any thread."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let the worker leave its context and end; raises what leaving raised. A worker that is gone stays gone."""
        if self._streams:
            self.abandon()
            return
        with self._all_links() as links:
            if self._first.closed:
                return
            try:
                for link in links:
                    self._send(link, (_CLOSE, None, ()))
                self._receive(self._first, _END_SECONDS)
                self._process.wait(_END_SECONDS)
            finally:
                self._kill(*links)

    @contextmanager
    def _all_links(self) -> Iterator[list[Link[Any, Any]]]:
        """Wait for every thread of the worker, those that are reading a stream excepted."""
        with self._ending:
            links = [self._free.get() for _ in range(self._threads - self._streams)]
        try:
            yield links
        finally:
            for link in links:
                self._free.put(link)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.abandon()
        else:
            self.close()


def _late(what: str, deadline: float | None) -> TokenUnreachableError:
    return TokenUnreachableError(
        f"{what} did not answer within {deadline} s, and the worker was ended",
        hint="check the token; what was in progress may or may not have happened there",
    )


@runtime_checkable
class BetweenCalls(Protocol):
    """A context that wants to know when a thread has no call under way, to take note of what others did."""

    def between_calls(self) -> None:
        """Take note of it; called before each call, in its thread."""


@runtime_checkable
class Wearing(Protocol):
    """A context that must be made fit again now and then, when no thread has a call under way."""

    @property
    def worn(self) -> bool:
        """Whether it is time."""

    def recycle(self) -> None:
        """Make it fit again."""


def serve(*descriptors: int) -> None:
    """Be a worker: read the opener from the first socket, enter it, and serve calls until the owner closes or ends.

    It leaves no core file: that would hold the PIN, and every key where the token is software. The collector of garbage
    is spared what is there for good, modules mostly: to go through them while they load and again at the end is a fifth
    of what a worker takes for a single call.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    links: list[Link[Any, Any]] = [Link(descriptor) for descriptor in descriptors]
    first, *others = links
    threading.Thread(target=_end_with_owner, args=(first.fileno(),), daemon=True).start()
    try:
        sys.path[:] = first.recv()
        opener, args, token_seconds = first.recv()
        if token_seconds is not None:
            watch(token_seconds)
        with opener(*args) as context:
            gc.freeze()
            gc.enable()
            serving = _Serving(context)
            threads = [threading.Thread(target=serving.serve, args=(link,), daemon=True) for link in others]
            for thread in threads:
                thread.start()
            first.send((_READY, None))
            serving.serve(first)
            for thread in threads:
                thread.join()
        first.send((_END, None))
    except Exception as error:  # noqa: BLE001 - it travels to the owner
        with suppress(BrokenPipeError, ConnectionResetError):  # the owner is gone, and nobody is left to tell
            first.send((_ERROR, _portable(error)))
    finally:
        gc.freeze()


def _end_with_owner(descriptor: int) -> None:
    """End this process when the owner's end of the socket is gone: nobody is left who could say what it is at."""
    owner = select.poll()
    owner.register(descriptor, 0)
    owner.poll()
    os._exit(1)


class _Serving:
    """Serves the calls of one context, in one thread or several."""

    def __init__(self, context: object) -> None:
        self._context = context
        self._gate = Gate()

    def serve(self, link: Link[Any, Any]) -> None:
        """Answer one call after the other until the owner closes the link."""
        while True:
            try:
                verb, function, args = link.recv()
            except (EOFError, ConnectionResetError):
                raise  # the owner is gone
            except Exception as error:  # noqa: BLE001 - it travels to the owner
                link.send((_ERROR, _portable(error)))
                continue
            if verb == _CLOSE:
                return
            if verb == _STOP:
                link.send((_STOPPED, None))
                continue
            try:
                self._answer(link, verb, function, args)
            except Exception as error:  # noqa: BLE001 - it travels to the owner, or raises anew where that is gone
                link.send((_ERROR, _portable(error)))

    def _answer(self, link: Link[Any, Any], verb: str, function: Callable[..., Any], args: tuple[object, ...]) -> None:
        context = self._context
        if isinstance(context, Wearing) and context.worn:
            self._gate.alone(lambda: context.worn, context.recycle)
        with self._gate.among_others():
            if isinstance(context, BetweenCalls):
                context.between_calls()
            if verb == _STREAM:
                _serve_stream(link, function(context, *args))
                answer: tuple[str, object] = (_END, None)
            else:
                answer = (_VALUE, function(context, *args))
        link.send(answer)


def _serve_stream(link: Link[Any, Any], items: Generator[object, None, None]) -> None:
    with closing(items):
        for item in items:
            if link.poll(0):
                return
            link.send((_ITEM, item))


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
