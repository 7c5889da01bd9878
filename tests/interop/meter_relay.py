"""A TCP relay between head end and meter that a test puts in the way: it holds back, drops or replaces answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

HEADER = 8
GLO_ACTION_REQUEST = 0xCB


class Dropped(Exception):  # noqa: N818 - an event, not an error
    """The connection is to be closed without an answer."""


Meddle = Callable[[int, bytes], bytes]
"""Gets the number of the key transfer (from 1) and the meter's answer frame; gives what is passed on, or drops."""


@dataclass
class Relay:
    """Passes frames on; `meddle` sees the answer to each key_transfer, the second action of its association."""

    target: int
    meddle: Meddle
    port: int = 0
    transfers: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.target), 20) as meter:
            actions = 0
            while request := frame_from(client):
                meter.sendall(request)
                answer = frame_from(meter)
                if request[HEADER] == GLO_ACTION_REQUEST:
                    actions += 1
                if request[HEADER] == GLO_ACTION_REQUEST and actions > 1:
                    answer = self._meddled(answer)
                if not answer:
                    return
                client.sendall(answer)

    def _meddled(self, answer: bytes) -> bytes:
        with self._lock:
            self.transfers += 1
            number = self.transfers
        try:
            return self.meddle(number, answer)
        except Dropped:
            return b""


def frame_from(connection: socket.socket) -> bytes:
    """Read one wrapper frame; empty where the connection ended."""
    try:
        head = _octets(connection, HEADER)
        return head + _octets(connection, int.from_bytes(head[6:8], "big")) if head else b""
    except OSError:
        return b""


def _octets(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            return b""
        data += more
    return data


@contextmanager
def relaying(target: int, meddle: Meddle) -> Iterator[Relay]:
    """Listen on a free port of the loopback and relay every connection to the target's port."""
    relay = Relay(target, meddle)
    with accepting(relay.serve) as relay.port:
        yield relay


@contextmanager
def accepting(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen on a free port of the loopback, give it, and serve every connection in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, serve), daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(serve, client), daemon=True).start()


def _serve(serve: Callable[[socket.socket], None], client: socket.socket) -> None:
    try:
        serve(client)
    except OSError:
        client.close()
