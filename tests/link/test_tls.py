from __future__ import annotations

import socket
import ssl
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from hsmkm.errors import HsmkmError, InputError, ProtocolError, RefusedError, TransportError
from hsmkm.link import gateway
from hsmkm.link.tls import PeerRefusedError, PeerRule, TlsLink, client_context, reason_of, server_context
from hsmkm.link.wrapper import Decoder, Frame
from tests.ports import held_port
from tests.tls_pki import DAY, Holder, TlsPki, now, write_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SERVER = "5554490000000001"
CLIENT = "5554490000000002"
METER = bytes.fromhex("4D4D4D0000BC614E")
APDU = bytes.fromhex("C001C100080000010000FF0200")
TIMEOUT = 10.0


@dataclass
class Sides:
    """Two parties of one PKI and their home folders."""

    pki: TlsPki
    server: Path
    client: Path
    server_holder: Holder
    client_holder: Holder


@dataclass
class Server:
    """A server on loopback that takes connections one after another and remembers how each ended."""

    port: int
    refusals: list[str] = field(default_factory=list)
    peers: list[bytes | None] = field(default_factory=list)


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    pki = TlsPki()
    server, client = pki.leaf(SERVER), pki.leaf(CLIENT)
    return Sides(pki, pki.home(tmp_path / "server", server), pki.home(tmp_path / "client", client), server, client)


def echo(frame: Frame) -> bytes:
    request = gateway.parse(frame.apdu)
    answer = request.answer(bytes(reversed(request.apdu))).encode()
    return Frame(frame.destination, frame.source, answer).encode()


@contextmanager
def serving(home: Path, answer: Callable[[Frame], bytes | None] = echo) -> Iterator[Server]:
    """Serve with the context of a home folder; an answer of None closes the connection."""
    context = server_context(home)
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(listener.getsockname()[1])
    stop = threading.Event()

    def take() -> None:
        while not stop.is_set():
            plain, _ = listener.accept()
            plain.settimeout(TIMEOUT)
            with plain:
                converse(plain)

    def converse(plain: socket.socket) -> None:
        try:
            connection = context.wrap_socket(plain, server_side=True)
        except OSError as error:
            server.refusals.append(reason_of(error))
            return
        with connection:
            server.peers.append(connection.getpeercert(binary_form=True))
            answer_all(connection)

    def answer_all(connection: ssl.SSLSocket) -> None:
        decoder = Decoder()
        try:
            while octets := connection.recv(65536):
                for frame in decoder.feed(octets):
                    reply = answer(frame)
                    if reply is None:
                        return
                    connection.sendall(reply)
        except OSError:
            return

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT):
            pass
        thread.join(TIMEOUT)
        listener.close()


def ask(home: Path, port: int, title: str = SERVER) -> bytes:
    with TlsLink("127.0.0.1", port, client_context(home), TIMEOUT, title, METER) as link:
        return link.exchange(APDU, 1, 1)


def test_an_apdu_goes_through_the_gateway_prefix_and_comes_back(sides: Sides) -> None:
    with serving(sides.server) as server:
        assert ask(sides.client, server.port) == bytes(reversed(APDU))
    assert server.peers == [sides.client_holder.der]


def test_a_server_may_be_told_by_its_host_name(sides: Sides) -> None:
    with serving(sides.server) as server:
        assert ask(sides.client, server.port, title="") == bytes(reversed(APDU))


def test_a_server_of_another_system_title_is_refused(sides: Sides) -> None:
    with serving(sides.server) as server, pytest.raises(RefusedError, match="5554490000000009 was dialled"):
        ask(sides.client, server.port, title="5554490000000009")


def expired(pki: TlsPki) -> Holder:
    return pki.leaf(CLIENT, start=now() - 3 * DAY, end=now() - DAY)


def not_yet_valid(pki: TlsPki) -> Holder:
    return pki.leaf(CLIENT, start=now() + DAY, end=now() + 2 * DAY)


def digital_signature(pki: TlsPki) -> Holder:
    return pki.leaf(CLIENT, purposes=(), usages=("digital_signature",))


def key_agreement(pki: TlsPki) -> Holder:
    return pki.leaf(CLIENT, purposes=(), usages=("key_agreement",))


def server_only(pki: TlsPki) -> Holder:
    return pki.leaf(CLIENT, purposes=(ExtendedKeyUsageOID.SERVER_AUTH,))


def client_only(pki: TlsPki) -> Holder:
    return pki.leaf(SERVER, purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,))


def another_pki(_pki: TlsPki) -> Holder:
    return TlsPki("Another").leaf(CLIENT)


def same_names_other_keys(_pki: TlsPki) -> Holder:
    return TlsPki().leaf(CLIENT)


WRONG = [
    (expired, "expired"),
    (not_yet_valid, "not yet valid"),
    (digital_signature, "not of the tls profile"),
    (key_agreement, "not of the tls profile"),
    (another_pki, "unable to get|self-signed"),
    (same_names_other_keys, "signature failure|unable to get|self-signed"),
]


@pytest.mark.parametrize(("make", "reason"), [*WRONG, (server_only, "unsuitable|unsupported|purpose")])
def test_a_client_with_the_wrong_certificate_is_refused(
    sides: Sides, make: Callable[[TlsPki], Holder], reason: str
) -> None:
    sides.pki.home(sides.client, make(sides.pki))

    with serving(sides.server) as server:
        with pytest.raises(TransportError):
            ask(sides.client, server.port)
        wait_for(server.refusals)
    assert server.peers == []
    assert matches(reason, server.refusals[0])


@pytest.mark.parametrize(("make", "reason"), [*WRONG, (client_only, "unsuitable|unsupported|purpose")])
def test_a_server_with_the_wrong_certificate_is_refused(
    sides: Sides, make: Callable[[TlsPki], Holder], reason: str
) -> None:
    sides.pki.home(sides.server, make(sides.pki))

    with serving(sides.server) as server, pytest.raises(RefusedError) as refused:
        ask(sides.client, server.port, title=CLIENT)
    assert matches(reason, refused.value.reasons[0])


def test_a_client_without_a_certificate_is_refused(sides: Sides) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(sides.server / "trust/anchors.pem")

    with serving(sides.server) as server:
        with pytest.raises(OSError):  # noqa: PT011 - an alert or a reset, as timing has it
            knock(server.port, context)
        wait_for(server.refusals)
    assert server.peers == []
    assert matches("did not return a certificate", server.refusals[0])


def knock(port: int, context: ssl.SSLContext) -> None:
    """Send an octet; TLS 1.3 tells a client of its refusal with the first thing that it reads."""
    with (
        socket.create_connection(("127.0.0.1", port), TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"\x00")
        if not connection.recv(1):
            raise ConnectionResetError


def test_older_versions_of_tls_are_refused(sides: Sides) -> None:
    assert server_context(sides.server).connection_context().minimum_version == ssl.TLSVersion.TLSv1_2
    assert client_context(sides.client).connection_context().minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_crl_counts_from_the_next_connection_on(sides: Sides) -> None:
    with serving(sides.server) as server:
        ask(sides.client, server.port)
        sides.pki.write_crls(sides.server, revoked=[sides.client_holder])
        with pytest.raises(TransportError):
            ask(sides.client, server.port)
        wait_for(server.refusals)
        assert server.refusals == ["certificate revoked"]
        sides.pki.write_crls(sides.server)
        assert ask(sides.client, server.port)


def test_one_context_of_a_client_reads_the_crl_again_too(sides: Sides) -> None:
    context = client_context(sides.client)

    with serving(sides.server) as server:
        with TlsLink("127.0.0.1", server.port, context, TIMEOUT, SERVER, METER) as link:
            link.exchange(APDU, 1, 1)
        sides.pki.write_crls(sides.client, revoked=[sides.server_holder])
        with pytest.raises(RefusedError, match="revoked"):
            TlsLink("127.0.0.1", server.port, context, TIMEOUT, SERVER, METER).open()


def test_a_crl_past_its_date_refuses(sides: Sides) -> None:
    sides.pki.write_crls(sides.server, next_update=now() - DAY)

    with serving(sides.server) as server:
        with pytest.raises(TransportError):
            ask(sides.client, server.port)
        wait_for(server.refusals)
    assert server.refusals[0] == "CRL has expired"


def test_a_name_of_an_impossible_type_is_refused(sides: Sides) -> None:
    """A common name that is a BIT STRING: cryptography raises TypeError where the name is read."""
    der = sides.server_holder.der.replace(b"\x55\x04\x03\x0c\x10", b"\x55\x04\x03\x03\x10")
    assert der != sides.server_holder.der
    with pytest.raises(PeerRefusedError, match="cannot be read"):
        PeerRule(ExtendedKeyUsageOID.SERVER_AUTH).check(der)


@pytest.mark.parametrize("authority", ["root", "issuing"])
def test_a_missing_crl_of_any_authority_refuses(sides: Sides, authority: str) -> None:
    (sides.client / f"trust/crl/{authority}.crl").unlink()

    with serving(sides.server) as server, pytest.raises(RefusedError, match="unable to get certificate CRL"):
        ask(sides.client, server.port)


def test_a_self_signed_certificate_among_the_intermediates_is_no_anchor(sides: Sides) -> None:
    stranger = TlsPki("Stranger")
    pem = stranger.root.certificate.public_bytes(Encoding.PEM)
    (sides.client / "trust/intermediates.pem").write_bytes(pem)

    with pytest.raises(InputError, match="self-signed"):
        client_context(sides.client)


def test_an_issuing_authority_among_the_anchors_does_not_end_a_chain(sides: Sides) -> None:
    pem = sides.pki.issuing.certificate.public_bytes(Encoding.PEM)
    (sides.client / "trust/anchors.pem").write_bytes(pem)

    with serving(sides.server) as server, pytest.raises(RefusedError, match="unable to get"):
        ask(sides.client, server.port)


def test_a_key_that_others_can_read_is_not_used(sides: Sides) -> None:
    write_key(sides.client, sides.client_holder, 0o640)

    with pytest.raises(InputError, match="others can read") as refused:
        client_context(sides.client)
    assert refused.value.hint.startswith("chmod 600")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("trust/crl/root.crl", b"junk", "is not a CRL in DER"),
        ("trust/anchors.pem", b"junk", "holds no PEM certificate"),
        ("certificates/tls.pem", b"junk", "cannot be used"),
        ("tls/key.pem", b"junk", "cannot be used"),
    ],
)
def test_a_damaged_file_is_named(sides: Sides, name: str, content: bytes, reason: str) -> None:
    (sides.client / name).write_bytes(content)

    with pytest.raises(InputError, match=reason):
        client_context(sides.client)


@pytest.mark.parametrize("name", ["trust/anchors.pem", "certificates/tls.pem", "tls/key.pem"])
def test_a_missing_file_is_named(sides: Sides, name: str) -> None:
    (sides.client / name).unlink()

    with pytest.raises(InputError, match=name.split("/", maxsplit=1)[0]):
        client_context(sides.client)


def other_meter(frame: Frame) -> bytes:
    request = gateway.parse(frame.apdu)
    stranger = gateway.GatewayFrame(gateway.Direction.RESPONSE, 0, b"STRANGER", request.apdu)
    return Frame(frame.destination, frame.source, stranger.encode()).encode()


def no_prefix(frame: Frame) -> bytes:
    return Frame(frame.destination, frame.source, APDU).encode()


def own_request(frame: Frame) -> bytes:
    return Frame(frame.destination, frame.source, frame.apdu).encode()


def two_answers(frame: Frame) -> bytes:
    return 2 * echo(frame)


@pytest.mark.parametrize("answer", [other_meter, no_prefix, own_request, two_answers])
def test_an_answer_that_is_not_the_meters_own_closes_the_link(sides: Sides, answer: Callable[[Frame], bytes]) -> None:
    with (
        serving(sides.server, answer) as server,
        TlsLink("127.0.0.1", server.port, client_context(sides.client), TIMEOUT, SERVER, METER) as link,
    ):
        with pytest.raises(ProtocolError):
            link.exchange(APDU, 1, 1)
        assert link._socket is None


def test_a_concentrator_that_hangs_up_is_a_transport_error(sides: Sides) -> None:
    def hang_up(_frame: Frame) -> None:
        return None

    with serving(sides.server, hang_up) as server, pytest.raises(TransportError, match="closed the connection"):
        ask(sides.client, server.port)


def test_nobody_listening_is_a_transport_error(sides: Sides) -> None:
    with held_port() as port, pytest.raises(TransportError, match="refused"):
        ask(sides.client, port)


def wait_for(items: list[str]) -> None:
    """Wait until the other thread has noted something; the bound only ends a test that fails."""
    waited = threading.Event()
    for _ in range(500):
        if items:
            return
        waited.wait(0.02)
    raise HsmkmError("the server noted nothing")


def matches(pattern: str, text: str) -> bool:
    return any(part in text for part in pattern.split("|"))
