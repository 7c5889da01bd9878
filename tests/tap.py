"""A TCP relay that a test puts in the way: it keeps all octets of both directions, and may alter answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

CHUNK = 65_536


def unaltered(octets: bytes) -> bytes:
    return octets


@dataclass
class Tap:
    """One listening port in front of a target; `streams` holds what went each way on each connection, in its order."""

    target: str
    alter: Callable[[bytes], bytes] = unaltered
    port: int = 0
    streams: list[bytearray] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serve(self, client: socket.socket) -> None:
        host, _, port = self.target.rpartition(":")
        with suppress(OSError), client, socket.create_connection((host, int(port))) as server:
            back = threading.Thread(target=self._pass_on, args=(server, client, self.alter), daemon=True)
            back.start()
            self._pass_on(client, server, unaltered)
            back.join()

    def _pass_on(self, source: socket.socket, sink: socket.socket, alter: Callable[[bytes], bytes]) -> None:
        stream = bytearray()
        self.streams.append(stream)
        with suppress(OSError):
            while octets := source.recv(CHUNK):
                passed = alter(octets)
                stream += passed
                sink.sendall(passed)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def tapping(target: str, alter: Callable[[bytes], bytes] = unaltered) -> Iterator[Tap]:
    """Listen on a free port of the loopback and relay every connection to the target, host:port."""
    tap = Tap(target, alter)
    with socket.create_server(("127.0.0.1", 0)) as server:
        tap.port = server.getsockname()[1]
        thread = threading.Thread(target=_accept, args=(server, tap))
        thread.start()
        try:
            yield tap
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(server: socket.socket, tap: Tap) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=tap.serve, args=(client,), daemon=True).start()
