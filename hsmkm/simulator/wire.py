"""One connection to a virtual meter: the wrapper of IEC 62056-4-7 around what its session says."""

from __future__ import annotations

import asyncio
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

from hsmkm.simulator.behaviour import DroppedError
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.session import Session

VERSION = 1
_HEADER = struct.Struct(">HHHH")


class Wire(asyncio.Protocol, ABC):
    """Frames in, answers out; what is no frame ends the connection, and so does a meter that drops it."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._transport: asyncio.Transport | None = None
        self._waiting = bytearray()

    @abstractmethod
    def begin(self, transport: asyncio.Transport) -> Session | None:
        """Give the meter's side of a new connection, or None to refuse it."""

    @abstractmethod
    def ended(self) -> None:
        """Take note that the connection is over; called once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take or refuse the connection."""
        self._transport = cast("asyncio.Transport", transport)
        self._session = self.begin(self._transport)
        if self._session is None:
            self.end()

    def connection_lost(self, _error: Exception | None) -> None:
        """Take note that the client left."""
        self.end()

    def data_received(self, data: bytes) -> None:
        """Answer every frame that is complete."""
        self._waiting += data
        try:
            while self._session is not None and (frame := self._next_frame()) is not None:
                self.receive(self._session, *frame)
        except DroppedError:
            self.end()

    def receive(self, session: Session, client: int, server: int, apdu: bytes) -> None:
        """Answer one APDU; raises DroppedError where the meter closes the connection instead."""
        answer = session.receive(apdu, client)
        if answer:
            self.write(session, client, server, answer)

    def write(self, session: Session, client: int, server: int, answer: bytes) -> None:
        """Write an answer, if the connection is still there."""
        if self._transport is not None:
            self._transport.write(_HEADER.pack(VERSION, server, client, len(answer)) + answer)
            session.sent()

    def end(self) -> None:
        """Close the connection, which releases the association."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self.cut()

    def cut(self) -> None:
        """Close the connection without a release: what waits for one in the meter is lost."""
        self._session = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            self.ended()

    def _next_frame(self) -> tuple[int, int, bytes] | None:
        """Give client, server and APDU; raises DroppedError for what is no frame."""
        if len(self._waiting) < _HEADER.size:
            return None
        version, client, server, length = _HEADER.unpack_from(self._waiting)
        if version != VERSION or not length:
            raise DroppedError
        end = _HEADER.size + length
        if len(self._waiting) < end:
            return None
        apdu = bytes(self._waiting[_HEADER.size : end])
        del self._waiting[:end]
        return client, server, apdu


class MeterWire(Wire):
    """A connection to one meter."""

    def __init__(self, meter: Meter, ended: Callable[[MeterWire], None]) -> None:
        super().__init__()
        self._meter = meter
        self._ended = ended

    def begin(self, _transport: asyncio.Transport) -> Session:
        """Speak for the meter."""
        return Session(self._meter)

    def ended(self) -> None:
        """Tell whoever keeps the connection."""
        self._ended(self)
