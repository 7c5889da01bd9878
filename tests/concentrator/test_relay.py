from __future__ import annotations

import asyncio
import logging
import socket
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from hsmkm.concentrator.relay import Relay, RelaySettings
from hsmkm.errors import RefusedError, TransportError
from hsmkm.link import gateway
from hsmkm.link.tls import TlsLink, client_context, server_context
from hsmkm.link.wrapper import Decoder, Frame
from tests.field import wait_until
from tests.ports import held_port
from tests.tls_pki import Holder, TlsPki

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEAD_END = "5554490000000001"
CONCENTRATOR = "434F4E0000000001"
METER = bytes.fromhex("4D4D4D0000BC614E")
SECOND = bytes.fromhex("4D4D4D0000BC614F")
STRANGER = bytes.fromhex("5858580000000001")
APDU = bytes.fromhex("C001C100080000010000FF0200")
TIMEOUT = 10.0


@dataclass
class FakeMeter:
    """A meter on plain TCP: answers each frame by `answer`, and remembers frames and connections."""

    answer: Callable[[Frame], bytes]
    frames: list[Frame] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    @contextmanager
    def running(self) -> Iterator[FakeMeter]:
        with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as opened:
            self.port = listener.getsockname()[1]
            threads: list[threading.Thread] = []

            def take() -> None:
                while True:
                    connection, _ = listener.accept()
                    opened.enter_context(connection)
                    first = connection.recv(65536)
                    if first == b"stop":
                        return
                    self.connections += 1
                    thread = threading.Thread(target=self._serve, args=(connection, first))
                    thread.start()
                    threads.append(thread)

            taker = threading.Thread(target=take)
            taker.start()
            try:
                yield self
            finally:
                with socket.create_connection(("127.0.0.1", self.port), TIMEOUT) as last:
                    last.sendall(b"stop")
                    taker.join(TIMEOUT)
                for thread in threads:
                    thread.join(TIMEOUT)

    def _serve(self, connection: socket.socket, octets: bytes) -> None:
        decoder = Decoder()
        try:
            while octets:
                for frame in decoder.feed(octets):
                    self.frames.append(frame)
                    connection.sendall(self.answer(frame))
                octets = connection.recv(65536)
        except OSError:
            return


def reverse(frame: Frame) -> bytes:
    return Frame(frame.destination, frame.source, bytes(reversed(frame.apdu))).encode()


@dataclass
class World:
    pki: TlsPki
    settings: RelaySettings
    homes: dict[str, Path]
    holders: dict[str, Holder]
    meters: dict[bytes, FakeMeter]
    port: int = 0

    def link(self, meter: bytes = METER) -> TlsLink:
        return TlsLink("127.0.0.1", self.port, client_context(self.homes["head"]), TIMEOUT, CONCENTRATOR, meter)

    def ask(self, meter: bytes = METER) -> bytes:
        with self.link(meter) as link:
            return link.exchange(APDU, 17, 1)


@contextmanager
def relaying(world: World) -> Iterator[World]:
    loop = asyncio.new_event_loop()
    relay = Relay(world.settings)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        world.port = asyncio.run_coroutine_threadsafe(relay.start(), loop).result(TIMEOUT)
        yield world
    finally:
        asyncio.run_coroutine_threadsafe(relay.stop(), loop).result(TIMEOUT)
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(TIMEOUT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(TIMEOUT)
        loop.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    pki = TlsPki()
    holders = {"head": pki.leaf(HEAD_END), "concentrator": pki.leaf(CONCENTRATOR)}
    homes = {name: pki.home(tmp_path / name, holder) for name, holder in holders.items()}
    meters = {METER: FakeMeter(reverse), SECOND: FakeMeter(reverse)}

    def route(title: bytes) -> tuple[str, int] | None:
        return ("127.0.0.1", meters[title].port) if title in meters else None

    settings = RelaySettings(
        host="127.0.0.1",
        port=0,
        context=server_context(homes["concentrator"]),
        authorise=lambda der: der == holders["head"].der,
        route=route,
    )
    with ExitStack() as stack:
        for meter in meters.values():
            stack.enter_context(meter.running())
        yield World(pki, settings, homes, holders, meters)


def test_an_apdu_reaches_the_meter_without_prefix_and_its_answer_comes_back(world: World) -> None:
    with relaying(world):
        assert world.ask() == bytes(reversed(APDU))
    assert world.meters[METER].frames == [Frame(17, 1, APDU)]
    assert world.meters[SECOND].frames == []


def test_an_association_keeps_its_connection_to_the_meter(world: World) -> None:
    with relaying(world):
        with world.link() as link:
            for _ in range(5):
                link.exchange(APDU, 1, 1)
        assert world.meters[METER].connections == 1
        world.ask()
    assert world.meters[METER].connections == 2


def test_one_connection_may_speak_with_several_meters(world: World) -> None:
    with relaying(world), world.link() as link:
        link.exchange(APDU, 1, 1)
        link._meter = SECOND
        link.exchange(APDU, 1, 1)
        link._meter = METER
        link.exchange(APDU, 1, 1)
    assert [meter.connections for meter in world.meters.values()] == [1, 1]
    assert [len(meter.frames) for meter in world.meters.values()] == [2, 1]


def test_the_meter_least_used_is_let_go_of_when_there_are_too_many(world: World) -> None:
    world.settings = replace(world.settings, most_meters=1)

    with relaying(world), world.link() as link:
        for meter in (METER, SECOND, METER):
            link._meter = meter
            link.exchange(APDU, 1, 1)
    assert world.meters[METER].connections == 2


def test_head_ends_at_the_same_time_do_not_share_a_meters_connection(world: World) -> None:
    with relaying(world), world.link() as first, world.link() as second:
        first.exchange(APDU, 1, 1)
        second.exchange(APDU, 1, 1)
    assert world.meters[METER].connections == 2


def silent(_frame: Frame) -> bytes:
    return b""


def for_another_client(frame: Frame) -> bytes:
    return Frame(frame.destination, frame.source + 1, frame.apdu).encode()


def junk(_frame: Frame) -> bytes:
    return b"junk that is no frame"


def test_a_broadcast_reaches_the_meter_and_nobody_waits_for_an_answer(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.meters[METER].answer = silent
    with relaying(world):
        for number in range(3):
            with world.link() as link:
                link.send(APDU + bytes([number]), 102, 1)
        wait_until(lambda: len(world.meters[METER].frames) == 3)
        assert world.ask(SECOND) == bytes(reversed(APDU))
    frames = sorted(world.meters[METER].frames, key=lambda frame: frame.apdu)
    assert frames == [Frame(102, 1, APDU + bytes([number])) for number in range(3)]
    assert "gave no answer" not in caplog.text


@pytest.mark.parametrize(
    ("answer", "reason", "timeout"),
    [
        (silent, "gave no answer in time", 1.0),
        (for_another_client, "answered for other service access points", TIMEOUT),
        (junk, "wrapper version", TIMEOUT),
    ],
)
def test_where_the_meter_has_no_answer_the_connection_is_closed_and_the_reason_logged(
    world: World, caplog: pytest.LogCaptureFixture, answer: Callable[[Frame], bytes], reason: str, timeout: float
) -> None:
    world.settings = replace(world.settings, answer_timeout=timeout)
    world.meters[METER].answer = answer

    with relaying(world), pytest.raises(TransportError, match="closed the connection"):
        world.ask()
    assert reason in caplog.text


def test_more_than_one_answer_ends_the_conversation_before_the_next_request(world: World) -> None:
    world.meters[METER].answer = lambda frame: 2 * reverse(frame)

    with relaying(world), world.link() as link:
        link.exchange(APDU, 1, 1)
        with pytest.raises(TransportError):
            link.exchange(APDU, 1, 1)
    assert len(world.meters[METER].frames) == 1


def test_a_relay_that_ends_in_the_midst_of_a_conversation_says_so_and_stumbles_over_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with ExitStack() as left:
        with relaying(world):
            link = left.enter_context(world.link())
            link.exchange(APDU, 1, 1)
        with pytest.raises(TransportError):
            link.exchange(APDU, 1, 1)
    assert "head end connection closed: the relay ends" in caplog.text
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelno > logging.INFO] == []


def test_an_unknown_meter_closes_the_connection(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with relaying(world), pytest.raises(TransportError):
        world.ask(STRANGER)
    assert "meter 5858580000000001 is not one of ours" in caplog.text


def test_a_meter_that_cannot_be_reached_closes_the_connection(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with held_port() as port, relaying(world):
        world.meters[STRANGER] = FakeMeter(reverse, port=port)
        with pytest.raises(TransportError):
            world.ask(STRANGER)
    assert "cannot be reached" in caplog.text


def test_a_failed_conversation_does_not_disturb_another(world: World) -> None:
    with relaying(world), world.link() as good:
        good.exchange(APDU, 1, 1)
        with pytest.raises(TransportError):
            world.ask(STRANGER)
        assert good.exchange(APDU, 1, 1) == bytes(reversed(APDU))


@pytest.mark.parametrize(
    "apdu",
    [
        APDU,
        gateway.GatewayFrame(gateway.Direction.RESPONSE, 0, METER, APDU).encode(),
        gateway.GatewayFrame(gateway.Direction.REQUEST, 0, METER[:7], APDU).encode(),
        b"\xe6\x00\x20",
    ],
)
def test_a_frame_that_is_no_request_is_not_relayed(world: World, apdu: bytes) -> None:
    with relaying(world), world.link() as link:
        link.send_frame(Frame(1, 1, apdu))
        with pytest.raises(TransportError):
            link.receive_frame()
    assert world.meters[METER].frames == []


def test_a_party_that_is_not_the_head_end_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.pki.home(world.homes["head"], world.pki.leaf(HEAD_END))

    with relaying(world), pytest.raises(TransportError):
        world.ask()
    assert "not that of a head end" in caplog.text
    assert world.meters[METER].connections == 0


def of_a_meter(world: World) -> None:
    world.pki.home(world.homes["head"], world.pki.leaf(HEAD_END, purposes=()))


def of_another_pki(world: World) -> None:
    world.pki.home(world.homes["head"], TlsPki("Another").leaf(HEAD_END))


def revoked(world: World) -> None:
    world.pki.write_crls(world.homes["concentrator"], revoked=[world.holders["head"]])


@pytest.mark.parametrize("spoil", [of_a_meter, of_another_pki, revoked])
def test_tls_refuses_before_anybody_is_asked(world: World, spoil: Callable[[World], None]) -> None:
    asked: list[bytes] = []

    def authorise(der: bytes) -> bool:
        asked.append(der)
        return True

    world.settings = replace(world.settings, authorise=authorise)

    with relaying(world):
        spoil(world)
        with pytest.raises((TransportError, RefusedError)):
            world.ask()
    assert asked == []


def test_an_idle_connection_is_closed(world: World) -> None:
    world.settings = replace(world.settings, idle_timeout=0.2)

    with relaying(world), world.link() as link, pytest.raises(TransportError, match="closed the connection"):
        link.receive_frame()


def test_a_connection_ends_with_its_lifetime(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.settings = replace(world.settings, lifetime=0.2)

    with relaying(world), world.link() as link, pytest.raises(TransportError, match="closed the connection"):
        link.receive_frame()
    assert "lifetime" in caplog.text


def test_connections_are_bounded(world: World) -> None:
    world.settings = replace(world.settings, most_connections=1)

    with relaying(world), world.link() as first:
        first.exchange(APDU, 1, 1)
        with pytest.raises(TransportError):
            world.ask()
        first.exchange(APDU, 1, 1)
