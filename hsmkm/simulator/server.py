"""Virtual meters behind TCP ports of the loopback, one port for each, with the wrapper of IEC 62056-4-7."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from hsmkm.errors import TransportError
from hsmkm.simulator.behaviour import DroppedError
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.session import Session

LOOPBACK = "127.0.0.1"
VERSION = 1
_HEADER = struct.Struct(">HHHH")

Ready = Callable[[Sequence[int]], None]


def announce(ports: Sequence[int]) -> None:
    """Print `READY` and the ports, in the order of the meters, for whoever started the process."""
    sys.stdout.write(f"READY {' '.join(str(port) for port in ports)}\n")
    sys.stdout.flush()


def serve(meters: Sequence[Meter], host: str = LOOPBACK, port: int = 0, ready: Ready = announce) -> None:
    """Serve meters until SIGTERM or SIGINT; meter n listens on port + n, or on any free port where `port` is 0.

    Raises TransportError if a port is taken.
    """
    asyncio.run(_serve_until_signal(meters, host, port, ready))


@contextlib.contextmanager
def serving(meters: Sequence[Meter], host: str = LOOPBACK, port: int = 0) -> Iterator[list[int]]:
    """Serve meters from a thread of this process and give their ports; for demonstrations and tests."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="virtual-meters")
    thread.start()
    fleet = _Fleet(host, port)
    try:
        yield asyncio.run_coroutine_threadsafe(fleet.open(meters), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(fleet.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serve_until_signal(meters: Sequence[Meter], host: str, port: int, ready: Ready) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    fleet = _Fleet(host, port)
    try:
        ready(await fleet.open(meters))
        await stop.wait()
    finally:
        await fleet.close()


class _Fleet:
    """The listening sockets and the connections of all meters, in one event loop."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self, meters: Sequence[Meter]) -> list[int]:
        """Listen for every meter and give the ports."""
        for number, meter in enumerate(meters):
            port = self._port + number if self._port else 0
            try:
                self._servers.append(await asyncio.start_server(self._handler(meter), self._host, port))
            except OSError as error:
                raise TransportError(f"port {port} of {self._host} cannot be listened on: {error.strerror}") from error
        return [server.sockets[0].getsockname()[1] for server in self._servers]

    async def close(self) -> None:
        """Stop listening and end every connection."""
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _handler(self, meter: Meter) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(_converse(meter, reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        return connected


async def _converse(meter: Meter, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    session = Session(meter)
    try:
        while True:
            await _answer(session, reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError, DroppedError, asyncio.CancelledError):
        pass  # the peer left, the fault closes the connection, or the fleet stops: nothing is owed to anybody
    finally:
        session.close()
        writer.close()


async def _answer(session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    version, client, server, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    if version != VERSION or not length:
        raise DroppedError
    answer = session.receive(await reader.readexactly(length), client)
    if not answer:
        return
    writer.write(_HEADER.pack(VERSION, server, client, len(answer)) + answer)
    await writer.drain()
    session.sent()
