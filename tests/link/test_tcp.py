from __future__ import annotations

import contextlib
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hsmkm.dlms.association import Association
from hsmkm.dlms.events import RefusalKind, Refused
from hsmkm.dlms.settings import public
from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, SecuritySuite, SystemTitle
from hsmkm.dlms.xdlms import GetBlock
from hsmkm.errors import ProtocolError, TransportError
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.link.tcp import TcpLink
from hsmkm.link.wrapper import Frame
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.session import Session
from hsmkm.simulator.state import MeterState
from tests.ports import held_port

REQUEST = b"\xc0\x01"
METER = SystemTitle.parse("4D4D4D0000BC614E")
ENERGY = AttributeRef(3, LogicalName.parse("1.0.1.8.0.255"), 2)


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """A peer that sends the next answer for each chunk it reads, and then closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def converse() -> None:
            connection, _ = server.accept()
            with connection:
                for answer in answers:
                    if not connection.recv(4096):
                        return
                    connection.sendall(answer)

        thread = threading.Thread(target=converse)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            thread.join(5)


@contextmanager
def dripping(octets: bytes, pause: float) -> Iterator[tuple[int, bytearray]]:
    """A peer that sends one octet after the other, with a pause before each; gives what has gone."""
    gone = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def converse() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                for octet in octets:
                    time.sleep(pause)
                    connection.sendall(bytes([octet]))
                    gone.append(octet)

        thread = threading.Thread(target=converse)
        thread.start()
        yield server.getsockname()[1], gone
    thread.join(30)


@contextmanager
def silent() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_answer_comes_back() -> None:
    with answering(Frame(1, 16, b"ok").encode()) as port, TcpLink("127.0.0.1", port, 5) as link:
        assert link.exchange(REQUEST, 16, 1) == b"ok"


def test_a_peer_that_is_not_there_is_named() -> None:
    with held_port() as port, pytest.raises(TransportError, match="cannot be reached: connection refused") as caught:
        TcpLink("127.0.0.1", port, 5).open()
    assert f"127.0.0.1:{port} " in caught.value.message


def test_silence_ends_with_the_timeout() -> None:
    with silent() as port, TcpLink("127.0.0.1", port, 0.05) as link, pytest.raises(TransportError, match="no answer"):
        link.exchange(REQUEST, 16, 1)


def test_an_answer_that_drips_in_ends_with_the_timeout_of_the_whole() -> None:
    frame = Frame(1, 16, bytes(2_000)).encode()
    with dripping(frame, 0.01) as (port, gone), TcpLink("127.0.0.1", port, 0.2) as link:
        with pytest.raises(TransportError, match="no answer"):
            link.exchange(REQUEST, 16, 1)
        assert len(gone) < len(frame)


def test_a_value_whose_blocks_come_slowly_ends_with_the_time_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """A meter that answers each request for a block, in time for each."""

        def exchange(self, apdu: bytes, _client_sap: int, _server_sap: int) -> bytes:
            if apdu[0] == 0x60:
                session = Session(Meter(MeterState(METER, SecuritySuite.SUITE_0, dict.fromkeys(KeyId, bytes(16)))))
                return session.receive(apdu, 16)
            time.sleep(0.02)
            number = int.from_bytes(apdu[3:7], "big") + 1 if apdu[1] == 2 else 1
            return GetBlock(1, last=False, number=number, error=0, raw=b"\x09").encode()

        def send(self, apdu: bytes, client_sap: int, server_sap: int) -> None: ...

    monkeypatch.setattr("hsmkm.link.client.VALUE_SECONDS", 0.1)
    client = Client(Slow(), Association(public()))
    client.associate()
    with pytest.raises(TransportError, match="whole answer within"):
        client.get(ENERGY)


def test_a_closed_connection_is_reported() -> None:
    with answering(b"") as port, TcpLink("127.0.0.1", port, 5) as link, pytest.raises(TransportError, match="closed"):
        link.exchange(REQUEST, 16, 1)


@pytest.mark.parametrize(
    "answer",
    [
        Frame(1, 17, b"ok").encode(),
        Frame(2, 16, b"ok").encode(),
        Frame(1, 16, b"ok").encode() * 2,
        Frame(1, 16, b"ok").encode() + b"\x00",
        b"HTTP/1.1 400 Bad Request",
    ],
)
def test_an_answer_for_others_or_too_many_answers_are_refused(answer: bytes) -> None:
    with answering(answer) as port, TcpLink("127.0.0.1", port, 5) as link, pytest.raises(ProtocolError):
        link.exchange(REQUEST, 16, 1)


def test_a_client_passes_the_refusal_on_with_its_event() -> None:
    aare = bytes.fromhex("6129A109060760857405080101A203020100A305A103020100BE10040E0800065F1F040000501F01F40007")
    refusal = bytes.fromhex("D80102")
    with (
        answering(Frame(1, 16, aare).encode(), Frame(1, 16, refusal).encode()) as port,
        TcpLink("127.0.0.1", port, 5) as link,
    ):
        client = Client(link, Association(public()))
        assert client.associate().max_pdu == 500
        with pytest.raises(MeterRefusedError, match="the meter refused: service not supported") as refused:
            client.get(AttributeRef(1, LogicalName.parse("0.0.42.0.0.255"), 2))
    assert refused.value.event.kind is RefusalKind.EXCEPTION


def test_a_refusal_travels_between_processes() -> None:
    error = MeterRefusedError(Refused("other reason", RefusalKind.ACTION, 250, authenticated=True), "try again")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own pickle, as a worker process makes it
    assert (copy.event, copy.hint, str(copy)) == (error.event, "try again", str(error))
