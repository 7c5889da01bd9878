"""A relay between head end and meter that lies once, at an answer of its choice, and otherwise passes frames on."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.interop.meter_relay import Dropped, accepting, frame_from

HEADER = struct.Struct(">HHHH")
PUBLIC_CLIENT = 16
GET_RESPONSE = 0xC4
WITHOUT_VALUE = 5
"""Octets of a plain GET response to a double-long-unsigned, before its value."""

NEAR, HIGH = 500, 0xF000_0000


def counter_error(value: int) -> bytes:
    """An exception-response that says which counter would be accepted; it is in clear, whoever sends it."""
    return bytes([0xD8, 0x01, 0x06]) + value.to_bytes(4, "big")


@dataclass
class Lies:
    """Counts the answers to the head end from 1; `lie` sees the one at `place` with those before it.

    With a `recording` of another conversation, its answer at `place` is given, and the request does not get through.
    """

    target: int
    place: int
    lie: Lie
    recording: tuple[bytes, ...] = ()
    answers: int = 0
    told: int = 0
    port: int = 0
    seen: list[bytes] = field(default_factory=list)
    _held: tuple[socket.socket, bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.target), 20) as meter:
            while request := frame_from(client):
                with self._lock:
                    self.answers += 1
                    answer = self._answered(meter, request)
                    self.seen.append(answer)
                if not answer:
                    return
                version, source, destination, _ = HEADER.unpack(request[: HEADER.size])
                client.sendall(HEADER.pack(version, destination, source, len(answer)) + answer)

    def _answered(self, meter: socket.socket, request: bytes) -> bytes:
        here = self.answers == self.place
        if here and (self.recording or self.lie is drop_request):
            self.told += 1
            return self.recording[self.place - 1] if self.recording else b""
        if here and self.lie is late:
            self.told += 1
            self._held = meter.dup(), request
            return b""
        meter.sendall(request)
        true = frame_from(meter)[HEADER.size :]
        if not true:
            return true
        said = self._said(true, HEADER.unpack(request[: HEADER.size])[1], here=here)
        self.told += said != true
        return said

    def deliver(self) -> None:
        """Let the request that was held back arrive now, in the association that it was for."""
        if self._held is not None:
            meter, request = self._held
            with meter:
                meter.settimeout(20)
                meter.sendall(request)
                frame_from(meter)

    def _said(self, true: bytes, client: int, *, here: bool) -> bytes:
        if self.lie in ALWAYS and client != PUBLIC_CLIENT:
            return counter_error(HIGH) if here else true
        try:
            return self.lie(true, self.seen) if here or self.lie in ALWAYS else true
        except Dropped:
            return b""


Lie = Callable[[bytes, list[bytes]], bytes]
"""Gets the meter's answer and all that was said before it; gives what is said, or drops it."""


def counter_high(_true: bytes, _seen: list[bytes]) -> bytes:
    return counter_error(HIGH)


def counter_near(_true: bytes, _seen: list[bytes]) -> bytes:
    return counter_error(100_000)


def counter_low(_true: bytes, _seen: list[bytes]) -> bytes:
    return counter_error(0)


def replayed(true: bytes, seen: list[bytes]) -> bytes:
    """Say what was said before to a request of this kind, or to any."""
    alike = [old for old in seen if old[:1] == true[:1]] or seen
    return alike[-1] if alike else true


def dropped(_true: bytes, _seen: list[bytes]) -> bytes:
    raise Dropped


def drop_request(true: bytes, _seen: list[bytes]) -> bytes:
    """Let a request not reach the meter, which is done before there is an answer."""
    return true


def late(true: bytes, _seen: list[bytes]) -> bytes:
    """Hold a request back until everybody thinks that it was lost."""
    return true


def honest(true: bytes, _seen: list[bytes]) -> bytes:
    return true


def _told_counter(true: bytes, change: Callable[[int], int]) -> bytes:
    """Change the counter that the meter tells the public client."""
    if true[0] != GET_RESPONSE:
        return true
    value = int.from_bytes(true[WITHOUT_VALUE:], "big")
    return true[:WITHOUT_VALUE] + change(value).to_bytes(4, "big")


def told_high(true: bytes, _seen: list[bytes]) -> bytes:
    return _told_counter(true, lambda _: HIGH)


def told_near(true: bytes, _seen: list[bytes]) -> bytes:
    return _told_counter(true, lambda value: value + NEAR)


def told_low(true: bytes, _seen: list[bytes]) -> bytes:
    return _told_counter(true, lambda _: 0)


ONCE: tuple[Lie, ...] = (counter_high, counter_near, counter_low, replayed, dropped, drop_request, late)
ALWAYS: tuple[Lie, ...] = (told_high, told_near, told_low)
"""Lies about the counter that the public client reads, at every reading; `place` is refused, so that it is read."""


@contextmanager
def lying(target: int, place: int, lie: Lie, recording: tuple[bytes, ...] = ()) -> Iterator[Lies]:
    """Relay to the target's port, with a lie."""
    lies = Lies(target, place, lie, recording)
    with accepting(lies.serve) as lies.port:
        yield lies
