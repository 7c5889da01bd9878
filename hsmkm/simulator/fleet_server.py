"""A fleet of virtual meters behind one port of the loopback, each at its own address of it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hsmkm.dlms import acse
from hsmkm.errors import InputError, TransportError
from hsmkm.simulator.behaviour import DroppedError
from hsmkm.simulator.fate import Mishap
from hsmkm.simulator.fleet import Device, Fleet
from hsmkm.simulator.server import announce, until_signal
from hsmkm.simulator.session import Session
from hsmkm.simulator.wire import Wire

ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - of the device lo, which is bound
LOOPBACK_DEVICE = b"lo\0"
BACKLOG = 4096


class FleetWire(Wire):
    """A connection to whichever meter has the address that it was made to, with what fate has for each exchange."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet
        self._device: Device | None = None
        self.client = 0

    @property
    def is_open(self) -> bool:
        """Whether there is an association on it, and the client at its end: one that left may not have been met yet."""
        if self._session is None or not self._session.is_open or self._transport is None:
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return not poll.poll(0)

    def begin(self, transport: asyncio.Transport) -> Session | None:
        """Find the meter by our own address; None where there is none."""
        number = self._fleet.number_at(transport.get_extra_info("sockname")[0])
        if number is None:
            return None
        self._device = self._fleet.enter(number, self)
        return Session(self._device.meter)

    def ended(self) -> None:
        """Leave the meter."""
        device, self._device = self._device, None
        if device is not None:
            self._fleet.leave(device, self)

    def receive(self, session: Session, client: int, server: int, apdu: bytes) -> None:
        """Answer one APDU, unless something befalls it; raises DroppedError where that ends the connection."""
        if self._device is None:
            return
        fate = self._fleet.fate(self._device.number)
        if fate.mishap is Mishap.REBOOT:
            self._fleet.reboot(self._device)
            return
        if fate.mishap is Mishap.REQUEST_LOST:
            raise DroppedError
        answer = session.receive(apdu, client)
        self.client = client
        if apdu[0] == acse.AARQ and session.is_open:
            self._fleet.opened(self._device, self)
        if fate.mishap in (Mishap.ANSWER_LOST, Mishap.SILENCE):
            session.sent()
            if fate.mishap is Mishap.ANSWER_LOST:
                raise DroppedError
        elif answer and fate.delay:
            asyncio.get_running_loop().call_later(fate.delay, self.write, session, client, server, answer)
        elif answer:
            self.write(session, client, server, answer)


@dataclass(frozen=True, slots=True)
class FleetFiles:
    """Where a fleet writes where its meters are, what befell them, and what they go on with when it starts again."""

    places: Path | None = None
    report: Path | None = None
    states: Path | None = None


class FleetServer:
    """The one listening socket of a fleet, in one event loop."""

    def __init__(self, fleet: Fleet, port: int = 0) -> None:
        self._fleet = fleet
        self._port = port
        self._server: asyncio.Server | None = None

    async def open(self) -> list[int]:
        """Listen, and give the port; raises TransportError."""
        listening = _listen(self._port)
        connect = partial(FleetWire, self._fleet)
        self._server = await asyncio.get_running_loop().create_server(connect, sock=listening, backlog=BACKLOG)
        return [listening.getsockname()[1]]

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        self._fleet.close()


def serve_fleet(fleet: Fleet, port: int, files: FleetFiles) -> None:
    """Serve a fleet until SIGTERM or SIGINT; SIGUSR1 writes the report before that.

    Raises TransportError where the port cannot be listened on, and InputError where the states cannot be read or a file
    cannot be written.
    """
    if files.states is not None and files.states.exists():
        _take_up(fleet, files.states)

    def ready(ports: Sequence[int]) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: _write(files.report, fleet.report()))
        _write(files.places, fleet.places(ports[0]))
        announce(ports)

    asyncio.run(until_signal(FleetServer(fleet, port), ready))
    _write(files.report, fleet.report())
    _write(files.states, fleet.states())


def _listen(port: int) -> socket.socket:
    """Listen on every address of the loopback, and on no other network; raises TransportError."""
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LOOPBACK_DEVICE)
        listening.bind((ANY_ADDRESS, port))
    except OSError as error:
        listening.close()
        raise TransportError(f"port {port} of the loopback cannot be listened on: {error.strerror}") from error
    return listening


def _take_up(fleet: Fleet, path: Path) -> None:
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path} holds keys and is readable by others", hint=f"chmod 600 {path}")
    with path.open(encoding="utf-8", errors="replace") as lines:
        fleet.take_up(lines)


def _write(path: Path | None, lines: Iterable[str]) -> None:
    """Replace a file at once, readable by its owner alone; raises InputError where that fails."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.new")
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(lines)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
