from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.concentrator import fetch
from hsmkm.concentrator.fetch import fetch_packages
from hsmkm.errors import HsmkmError, PolicyError, ProtocolError, RefusedError, TokenUnreachableError, TransportError
from hsmkm.link.aim import Aim
from hsmkm.link.tls import ReloadingContext, client_context, server_context
from tests.ports import held_port
from tests.tls_pki import TlsPki

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

AIM = "5554490000000001"
ONE, TWO = (f"00000000-0000-4000-8000-00000000000{digit}" for digit in "12")


class FakeAim(HTTPServer):
    """An AIM over TLS whose answers a test may falsify: path -> (status, content)."""

    def __init__(self, context: ReloadingContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.context = context
        self.packages: dict[str, bytes] = {}
        self.receipts: list[tuple[str, bytes]] = []
        self.answers: dict[str, tuple[int, bytes]] = {}

    def get_request(self) -> tuple[socket.socket, Any]:
        plain, address = super().get_request()
        return self.context.wrap_socket(plain, server_side=True), address

    def listing(self) -> bytes:
        acknowledged = {package_id for package_id, _ in self.receipts}
        return json.dumps(
            {
                "packages": [
                    {"id": package_id, "sha256": hashlib.sha256(content).hexdigest()}
                    for package_id, content in self.packages.items()
                    if package_id not in acknowledged
                ]
            }
        ).encode()

    def answer(self, path: str) -> tuple[int, bytes]:
        if path in self.answers:
            return self.answers[path]
        if path == "/v1/packages":
            return 200, self.listing()
        return 200, self.packages[path.rsplit("/", 1)[1]]


class _Handler(BaseHTTPRequestHandler):
    server: FakeAim
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(*self.server.answer(self.path))

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path in self.server.answers:
            self._answer(*self.server.answers[self.path])
            return
        self.server.receipts.append((self.path.split("/")[3], content))
        self._answer(201, b"{}")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        """Keep standard error for the tests."""


@contextmanager
def serving(aim: FakeAim) -> Iterator[None]:
    thread = threading.Thread(target=aim.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        aim.shutdown()
        thread.join()
        aim.server_close()


@pytest.fixture
def aim(tmp_path: Path) -> Iterator[FakeAim]:
    pki = TlsPki()
    pki.home(tmp_path / "client", pki.leaf("434F4E0000000001"))
    server = FakeAim(server_context(pki.home(tmp_path / "aim", pki.leaf(AIM))))
    server.packages = {ONE: b"one", TWO: b"two"}
    with serving(server):
        yield server


@pytest.fixture
def address(aim: FakeAim, tmp_path: Path) -> Aim:
    return Aim("127.0.0.1", aim.server_address[1], client_context(tmp_path / "client", AIM), 10.0)


def accept(package: bytes) -> bytes:
    return b"receipt of " + package


def never(_package: bytes) -> bytes:
    raise AssertionError("a package was opened")


def test_packages_are_taken_in_the_order_of_the_list(aim: FakeAim, address: Aim) -> None:
    assert fetch_packages(address, accept) == (ONE, TWO)
    assert aim.receipts == [(ONE, b"receipt of one"), (TWO, b"receipt of two")]


def test_a_run_that_was_cut_off_is_finished_by_the_next(aim: FakeAim, address: Aim) -> None:
    taken: list[bytes] = []

    def accept_and_note(package: bytes) -> bytes:
        taken.append(package)
        return accept(package)

    aim.answers[f"/v1/packages/{ONE}/receipt"] = (503, b"{}")
    with pytest.raises(TransportError):
        fetch_packages(address, accept_and_note)
    aim.answers.clear()

    assert fetch_packages(address, accept_and_note) == (ONE, TWO)
    assert taken == [b"one", b"one", b"two"]
    assert aim.receipts == [(ONE, b"receipt of one"), (TWO, b"receipt of two")]


def test_the_first_failure_ends_the_run_so_that_no_sequence_is_overtaken(aim: FakeAim, address: Aim) -> None:
    def token_gone(_package: bytes) -> bytes:
        raise TokenUnreachableError("the token is gone")

    with pytest.raises(TokenUnreachableError):
        fetch_packages(address, token_gone)
    assert aim.receipts == []


def test_a_package_that_is_not_the_listed_one_is_not_opened(aim: FakeAim, address: Aim) -> None:
    aim.answers[f"/v1/packages/{ONE}"] = (200, b"something else")

    with pytest.raises(ProtocolError, match="another digest"):
        fetch_packages(address, never)


def test_a_package_listed_again_after_its_receipt_ends_the_run(aim: FakeAim, address: Aim) -> None:
    aim.answers["/v1/packages"] = (200, aim.listing())

    with pytest.raises(ProtocolError, match="again after its receipt"):
        fetch_packages(address, accept)


@pytest.mark.parametrize(
    "listing",
    [
        b"",
        b"junk",
        b"[]",
        b'{"packages": {}, "x": 1',
        b'{"packages": 7}',
        b'{"packages": {}}',
        b'{"packages": [{}]}',
        b'{"packages": [{"id": "../healthz", "sha256": "%s"}]}' % (b"0" * 64),
        b'{"packages": [{"id": "%s", "sha256": "00"}]}' % ONE.encode(),
        b'{"packages": [{"id": 7, "sha256": "00"}]}',
        b"[" * 100_000,
        b" " * (fetch.MAX_LIST + 1),
    ],
    ids=lambda listing: repr(listing[:40]),
)
def test_a_list_that_cannot_be_read_is_a_protocol_error(aim: FakeAim, address: Aim, listing: bytes) -> None:
    aim.answers["/v1/packages"] = (200, listing)

    with pytest.raises(ProtocolError):
        fetch_packages(address, accept)
    assert aim.receipts == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, PolicyError), (404, RefusedError), (409, RefusedError), (302, RefusedError), (500, TransportError)],
)
def test_a_status_becomes_an_error_with_what_the_aim_said(
    aim: FakeAim, address: Aim, status: int, kind: type[HsmkmError]
) -> None:
    aim.answers["/v1/packages"] = (status, b'{"error": "not \\u001b[2J now", "hint": "later"}')

    with pytest.raises(kind) as refused:
        fetch_packages(address, accept)
    said = (*getattr(refused.value, "reasons", ()), refused.value.hint)
    assert "not ?[2J now: later" in said


def test_another_server_of_the_same_pki_is_not_the_aim(aim: FakeAim, tmp_path: Path) -> None:
    context = client_context(tmp_path / "client", "5554490000000009")

    with pytest.raises(RefusedError, match="5554490000000009 was dialled"):
        fetch_packages(Aim("127.0.0.1", aim.server_address[1], context, 10.0), accept)


def test_an_aim_that_does_not_listen_is_a_transport_error(address: Aim) -> None:
    with held_port() as port, pytest.raises(TransportError, match="cannot be reached"):
        fetch_packages(replace(address, port=port), accept)


VALUES = st.none() | st.text() | st.integers()
JSON = st.recursive(VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "sha256"]), inner))


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps({"packages": value}).encode()))
def test_any_list_is_read_or_refused(content: bytes) -> None:
    try:
        fetch._read_list(content)
    except ProtocolError:
        return
