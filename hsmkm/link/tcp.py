"""APDUs over plain TCP with the wrapper: the way to a meter, or to a concentrator on a trusted network."""

from __future__ import annotations

import socket
import time
from types import TracebackType
from typing import Protocol, Self

from hsmkm.errors import ProtocolError, TransportError
from hsmkm.link.wrapper import Decoder, Frame

_CHUNK = 65_536


class ApduLink(Protocol):
    """Whatever carries an APDU to a meter and brings its answer."""

    def exchange(self, apdu: bytes, client_sap: int, server_sap: int) -> bytes:
        """Send an APDU and give the answer; raises TransportError and ProtocolError, after which the link is closed."""
        ...

    def send(self, apdu: bytes, client_sap: int, server_sap: int) -> None:
        """Send an APDU that has no answer; raises TransportError."""
        ...


class TcpLink:
    """One connection to one meter, opened with the first exchange or on entering.

    `timeout` in seconds bounds the whole of connecting and the whole of each exchange. After an error the connection is
    closed, since a late answer would be taken for the next one.
    """

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._address = (host, port)
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._decoder = Decoder()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def peer(self) -> str:
        """The address as host:port."""
        return f"{self._address[0]}:{self._address[1]}"

    def open(self) -> socket.socket:
        """Connect unless connected; raises TransportError."""
        if self._socket is None:
            try:
                self._socket = socket.create_connection(self._address, self._timeout)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                self.close()
                raise TransportError(
                    f"{self.peer} cannot be reached: {_why(error)}", "check address and port"
                ) from error
            self._decoder = Decoder()
        return self._socket

    def close(self) -> None:
        """Close the connection if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, apdu: bytes, client_sap: int, server_sap: int) -> bytes:
        """Send an APDU and give the answer to it; raises TransportError and ProtocolError."""
        self.send_frame(Frame(client_sap, server_sap, apdu))
        answer = self.receive_frame()
        if (answer.source, answer.destination) != (server_sap, client_sap):
            self.close()
            raise ProtocolError(f"{self.peer} answered for other service access points")
        return answer.apdu

    def send(self, apdu: bytes, client_sap: int, server_sap: int) -> None:
        """Send an APDU that has no answer; raises TransportError. That it left is all that is known of it."""
        self.send_frame(Frame(client_sap, server_sap, apdu))

    def send_frame(self, frame: Frame) -> None:
        """Send one frame; raises TransportError."""
        octets = frame.encode()
        connection = self.open()
        try:
            connection.settimeout(self._timeout)
            connection.sendall(octets)
        except OSError as error:
            self.close()
            raise TransportError(f"{self.peer} cannot be written to: {_why(error)}") from error

    def receive_frame(self) -> Frame:
        """Wait for one frame; raises TransportError, and ProtocolError for octets that are none or too many."""
        connection = self.open()
        deadline = time.monotonic() + self._timeout
        try:
            return self._receive(connection, deadline)
        except OSError as error:
            self.close()
            raise TransportError(f"no answer from {self.peer}: {_why(error)}") from error
        except (ProtocolError, TransportError):
            self.close()
            raise

    def _receive(self, connection: socket.socket, deadline: float) -> Frame:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TransportError(f"no answer from {self.peer} within {self._timeout:g} s")
            connection.settimeout(left)
            octets = connection.recv(_CHUNK)
            if not octets:
                raise TransportError(f"{self.peer} closed the connection")
            frames = self._decoder.feed(octets)
            if len(frames) > 1 or (frames and self._decoder.waiting):
                raise ProtocolError(f"{self.peer} sent more than one answer")
            if frames:
                return frames[0]


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return (error.strerror or type(error).__name__).lower()
