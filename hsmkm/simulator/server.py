"""Virtual meters behind TCP ports of the loopback, one port for each, with the wrapper of IEC 62056-4-7."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from hsmkm.errors import TransportError
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.wire import MeterWire

LOOPBACK = "127.0.0.1"

Ready = Callable[[Sequence[int]], None]


def announce(ports: Sequence[int]) -> None:
    """Print `READY` and the ports, in the order of the meters, for whoever started the process."""
    sys.stdout.write(f"READY {' '.join(str(port) for port in ports)}\n")
    sys.stdout.flush()


def serve(meters: Sequence[Meter], host: str = LOOPBACK, port: int = 0, ready: Ready = announce) -> None:
    """Serve meters until SIGTERM or SIGINT; meter n listens on port + n, or on any free port where `port` is 0.

    Raises TransportError if a port is taken.
    """
    asyncio.run(until_signal(_Ports(meters, host, port), ready))


def serving(
    meters: Sequence[Meter], host: str = LOOPBACK, port: int = 0
) -> contextlib.AbstractContextManager[list[int]]:
    """Serve meters from a thread of this process and give their ports; for demonstrations and tests."""
    return beside(_Ports(meters, host, port))


class Server(Protocol):
    """What listens for meters in an event loop."""

    async def open(self) -> list[int]:
        """Listen, and give the ports."""

    async def close(self) -> None:
        """Stop listening and end every connection."""


@contextlib.contextmanager
def beside(server: Server) -> Iterator[list[int]]:
    """Run a server in a thread of this process and give its ports."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="virtual-meters")
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(server.open(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def until_signal(server: Server, ready: Ready) -> None:
    """Run a server until SIGTERM or SIGINT; `ready` is told its ports."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        ready(await server.open())
        await stop.wait()
    finally:
        await server.close()


class _Ports:
    """The listening sockets and the connections of all meters, in one event loop."""

    def __init__(self, meters: Sequence[Meter], host: str, port: int) -> None:
        self._meters = meters
        self._host = host
        self._port = port
        self._servers: list[asyncio.Server] = []
        self._connections: set[MeterWire] = set()

    async def open(self) -> list[int]:
        """Listen for every meter and give the ports."""
        loop = asyncio.get_running_loop()
        for number, meter in enumerate(self._meters):
            port = self._port + number if self._port else 0
            try:
                self._servers.append(await loop.create_server(partial(self._connect, meter), self._host, port))
            except OSError as error:
                raise TransportError(f"port {port} of {self._host} cannot be listened on: {error.strerror}") from error
        return [server.sockets[0].getsockname()[1] for server in self._servers]

    async def close(self) -> None:
        """Stop listening and end every connection."""
        for server in self._servers:
            server.close()
        for connection in tuple(self._connections):
            connection.end()

    def _connect(self, meter: Meter) -> MeterWire:
        connection = MeterWire(meter, self._connections.discard)
        self._connections.add(connection)
        return connection
