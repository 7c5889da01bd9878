"""Relaying between the head end and the meters.

The head end comes over mutual TLS with wrapper frames whose APDU carries the gateway prefix `E6`; the meter is reached
over TCP with the same frame without the prefix, and its answer goes back under `E7`. There is one connection to a meter
for each connection of the head end, opened with the first request: an association lives and dies with it, and two head
ends never share one.

An answer under `E7` is always the meter's own. Where there is none (an unknown meter, one that cannot be reached or
stays silent, a frame that is not a request), the relay logs the reason and closes the head end's connection. The
gateway protocol has no error of its own, and an exception-response made here could not be told from a meter's: it would
say "refused" where the truth is "not known", which is what a closed connection says.

A broadcast has no answer: the head end sends it and leaves, and the relay waits no longer than that.

What is relayed is ciphered end to end. The relay reads the prefix and nothing behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hsmkm.concentrator.turns import Turns
from hsmkm.errors import HsmkmError, ProtocolError, RefusedError, TransportError
from hsmkm.link import gateway
from hsmkm.link.gateway import Direction, GatewayFrame
from hsmkm.link.wrapper import Decoder, Frame

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Coroutine

_CHUNK = 65_536
_TITLE_OCTETS = 8
_CLOSE_SECONDS = 1.0
_TURN_SECONDS = 0.02

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Where to listen (port 0 takes a free one), the TLS context, and bounds; times in seconds.

    `authorise` says whether a TLS certificate (DER) is the head end's, `route` where a meter (8 octets) is reached.
    Both may block and are called from threads.
    """

    host: str
    port: int
    context: ssl.SSLContext
    authorise: Callable[[bytes], bool]
    route: Callable[[bytes], tuple[str, int] | None]
    answer_timeout: float = 30.0
    idle_timeout: float = 300.0
    lifetime: float = 3600.0
    most_connections: int = 64
    most_meters: int = 256
    turns: Turns = field(default_factory=Turns)


@dataclass(eq=False)
class _Stream:
    """One TCP connection and the frames that came on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    decoder: Decoder = field(default_factory=Decoder)
    waiting: list[Frame] = field(default_factory=list)

    async def receive(self) -> Frame | None:
        """Wait for one frame; None at the end of the stream."""
        while not self.waiting:
            octets = await self.reader.read(_CHUNK)
            if not octets:
                return None
            self.waiting += self.decoder.feed(octets)
        return self.waiting.pop(0)

    async def send(self, frame: Frame) -> None:
        self.writer.write(frame.encode())
        await self.writer.drain()

    async def close(self) -> None:
        """Let what was written go out, but do not wait long for a peer that does not take it."""
        self.writer.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.writer.wait_closed()
        except OSError as error:
            logger.debug("connection cut off at its end: %s", type(error).__name__)
            self.writer.transport.abort()


class Relay:
    """The listening side; `start` returns the port, `stop` closes every connection."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen, and return the port; TransportError if it cannot be had."""
        settings = self._settings
        try:
            self._server = await asyncio.start_server(
                self._take,
                settings.host,
                settings.port,
                ssl=settings.context,
                ssl_handshake_timeout=settings.answer_timeout,
            )
        except OSError as error:
            raise TransportError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stop listening and end every conversation."""
        if self._server is not None:
            self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served outside of a task")
        self._running.add(task)
        try:
            await self._attend(_Stream(reader, writer))
        except asyncio.CancelledError:
            # `stop` alone does this, and wants no more of it: asyncio.streams logs a traceback of a cancelled task.
            writer.transport.abort()
            logger.info("head end connection closed: the relay ends")
        finally:
            self._running.discard(task)

    async def _attend(self, head_end: _Stream) -> None:
        """Serve a connection until it ends, and close it; whatever ends it is logged."""
        try:
            await self._serve(head_end)
        except HsmkmError as error:
            logger.warning("head end connection closed: %s", error)
        except TimeoutError:
            logger.info("head end connection closed: idle or at the end of its lifetime")
        except OSError as error:
            logger.info("head end connection lost: %s", type(error).__name__)
        finally:
            await head_end.close()

    async def _serve(self, head_end: _Stream) -> None:
        if len(self._running) > self._settings.most_connections:
            raise RefusedError("too many connections at once")
        certificate = head_end.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if not await asyncio.to_thread(self._settings.authorise, certificate):
            raise RefusedError("the TLS certificate is not that of a head end")
        meters = _Meters(self._settings)
        try:
            async with asyncio.timeout(self._settings.lifetime):
                await self._converse(head_end, meters)
        finally:
            await meters.close()

    async def _converse(self, head_end: _Stream, meters: _Meters) -> None:
        coming = asyncio.ensure_future(head_end.receive())
        try:
            while True:
                async with asyncio.timeout(self._settings.idle_timeout):
                    frame = await coming
                if frame is None:
                    return
                request = _read_request(frame)
                plain = Frame(frame.source, frame.destination, request.apdu)
                await meters.send(request.address, plain)
                coming = asyncio.ensure_future(head_end.receive())
                answer = await _unless_left(coming, meters.answer(request.address, plain))
                if answer is None:
                    return
                response = request.answer(answer.apdu).encode()
                async with asyncio.timeout(self._settings.idle_timeout):
                    await head_end.send(Frame(answer.source, answer.destination, response))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


class _Meters:
    """The connections to meters that belong to one connection of the head end; the one least used goes first."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._open: dict[bytes, _Stream] = {}

    async def send(self, title: bytes, request: Frame) -> None:
        """Send a frame to a meter; an error says which meter, and ends the conversation."""
        name = title.hex().upper()
        async with self._bounded(name):
            meter = await self._stream(title)
            if meter.waiting or meter.decoder.waiting:
                raise ProtocolError(f"meter {name} sent something that nobody asked for")
            await meter.send(request)

    async def answer(self, title: bytes, request: Frame) -> Frame:
        """Wait for a meter's answer to a frame that was sent; errors as `send`."""
        name = title.hex().upper()
        async with self._bounded(name):
            answer = await self._open[title].receive()
        if answer is None:
            raise TransportError(f"meter {name} closed the connection")
        if (answer.source, answer.destination) != (request.destination, request.source):
            raise ProtocolError(f"meter {name} answered for other service access points")
        return answer

    @contextlib.asynccontextmanager
    async def _bounded(self, name: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._settings.answer_timeout):
                yield
        except TimeoutError as error:
            raise TransportError(f"meter {name} gave no answer in time") from error
        except OSError as error:
            raise TransportError(f"meter {name} cannot be reached: {type(error).__name__}") from error

    async def close(self) -> None:
        while self._open:
            await self._close_one(next(iter(self._open)))

    async def _close_one(self, title: bytes) -> None:
        meter = self._open.pop(title)
        try:
            await meter.close()
        finally:
            self._settings.turns.end_relaying(title)

    async def _stream(self, title: bytes) -> _Stream:
        meter = self._open.pop(title, None) or await self._connect(title)
        self._open[title] = meter
        if len(self._open) > self._settings.most_meters:
            await self._close_one(next(iter(self._open)))
        return meter

    async def _connect(self, title: bytes) -> _Stream:
        """Find and reach a meter, when nobody is reading it."""
        address = await asyncio.to_thread(self._settings.route, title)
        if address is None:
            raise RefusedError(f"meter {title.hex().upper()} is not one of ours")
        while not self._settings.turns.begin_relaying(title):  # noqa: ASYNC110 - the reader's thread ends the turn
            await asyncio.sleep(_TURN_SECONDS)
        try:
            return _Stream(*await asyncio.open_connection(*address))
        except BaseException:
            self._settings.turns.end_relaying(title)
            raise


async def _unless_left(coming: asyncio.Future[Frame | None], answer: Coroutine[None, None, Frame]) -> Frame | None:
    """Wait for a meter's answer; None where the head end leaves without it, as it does after a broadcast."""
    waiting = asyncio.ensure_future(answer)
    try:
        both: set[asyncio.Future[Any]] = {coming, waiting}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if coming.done() and not waiting.done() and coming.result() is None:
            return None
        return await waiting
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def _read_request(frame: Frame) -> GatewayFrame:
    request = gateway.parse(frame.apdu)
    if request.direction is not Direction.REQUEST:
        raise ProtocolError("the head end sent a gateway response")
    if len(request.address) != _TITLE_OCTETS:
        raise ProtocolError(f"a meter is addressed by its system title of 8 octets, not {len(request.address)}")
    return request
