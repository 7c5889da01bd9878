from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from hsmkm.concentrator.fetch import fetch_packages
from hsmkm.dlms.general import LARGEST_APDU
from hsmkm.errors import (
    HsmkmError,
    InputError,
    IntegrityError,
    PolicyError,
    RefusedError,
    TokenUnreachableError,
    TransportError,
)
from hsmkm.link.aim import Aim
from hsmkm.link.tls import client_context, server_context
from hsmkm.service.app import MAX_RECEIPT, create_app
from hsmkm.service.desk import PackageSummary, ReceiptOutcome, ReceiptResult
from hsmkm.service.server import make_server
from tests.tls_pki import DAY, Holder, TlsPki, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

AIM = "5554490000000001"
CONCENTRATOR = "434F4E0000000001"
TIMEOUT = 10.0
ID_A, ID_B, ID_NONE = (f"00000000-0000-4000-8000-00000000000{digit}" for digit in "ab0")
CONTENT_A, CONTENT_B = b"package for a", b"package for b"


@dataclass
class FakeDesk:
    """Two concentrators with one package each, and the utility itself, which may observe."""

    parties: dict[bytes, str]
    shelf: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {"a": {ID_A: CONTENT_A}, "b": {ID_B: CONTENT_B}, "utility": {}}
    )
    receipts: dict[str, bytes] = field(default_factory=dict)
    error: HsmkmError | None = None
    well: tuple[bool, str] = (True, "")

    def party_for(self, certificate_der: bytes) -> str | None:
        return self.parties.get(certificate_der)

    def may_observe(self, party: str) -> bool:
        return party == "utility"

    def packages(self, party: str) -> Sequence[PackageSummary]:
        return [
            PackageSummary(id_, "distribution", 1, hashlib.sha256(content).hexdigest(), len(content))
            for id_, content in self.shelf[party].items()
            if id_ not in self.receipts
        ]

    def package(self, party: str, package_id: str) -> bytes | None:
        if self.error:
            raise self.error
        return self.shelf[party].get(package_id)

    def receipt(self, party: str, package_id: str, content: bytes) -> ReceiptOutcome:
        if package_id not in self.shelf[party]:
            return ReceiptOutcome(ReceiptResult.UNKNOWN)
        kept = self.receipts.setdefault(package_id, content)
        if content == b"forged":
            return ReceiptOutcome(ReceiptResult.REFUSED, ("signature does not fit", "package id differs"))
        return ReceiptOutcome(ReceiptResult.REPLAYED if kept is not content else ReceiptResult.ACCEPTED)

    def refusals(self) -> dict[str, int]:
        return {"wrong-suite": 2}

    def forward(self, party: str, meter: str, apdu: bytes) -> bytes:
        if self.error:
            raise self.error
        if party != "a":
            raise PolicyError(f"{party} may not reach meter {meter}")
        return bytes.fromhex(meter) + apdu

    def ready(self) -> tuple[bool, str]:
        return self.well


@dataclass
class Service:
    port: int
    desk: FakeDesk
    pki: TlsPki
    homes: dict[str, Path]
    holders: dict[str, Holder]

    def ask(
        self, party: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        context = client_context(self.homes[party], AIM)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=TIMEOUT, context=context)
        try:
            connection.request("GET" if body is None else "POST", path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def aim(self, party: str) -> Aim:
        return Aim("127.0.0.1", self.port, client_context(self.homes[party], AIM), TIMEOUT)


@contextmanager
def running(desk: FakeDesk, context: ssl.SSLContext) -> Iterator[int]:
    ports: list[int] = []
    listening = threading.Event()

    def ready(port: int) -> None:
        ports.append(port)
        listening.set()

    server = make_server(create_app(desk), "127.0.0.1", 0, context, ready)
    thread = threading.Thread(target=server.serve_until_stopped)
    thread.start()
    try:
        assert listening.wait(TIMEOUT)
        yield ports[0]
    finally:
        server.should_exit = True
        thread.join(TIMEOUT)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    pki = TlsPki()
    titles = {
        "aim": AIM,
        "utility": AIM,
        "a": CONCENTRATOR,
        "b": "434F4E0000000002",
        "unknown": "5858580000000001",
    }
    holders = {name: pki.leaf(title) for name, title in titles.items()}
    homes = {name: pki.home(tmp_path / name, holder) for name, holder in holders.items()}
    desk = FakeDesk({holders[name].der: name for name in ("a", "b", "utility")})
    with running(desk, server_context(homes["aim"])) as port:
        yield Service(port, desk, pki, homes, holders)


def test_a_party_lists_and_fetches_its_package(service: Service) -> None:
    status, content = service.ask("a", "/v1/packages")

    assert status == 200
    digest = hashlib.sha256(CONTENT_A).hexdigest()
    assert json.loads(content) == {
        "packages": [{"id": ID_A, "purpose": "distribution", "sequence": 1, "sha256": digest, "octets": len(CONTENT_A)}]
    }
    assert service.ask("a", f"/v1/packages/{ID_A}") == (200, CONTENT_A)


def test_another_partys_package_is_answered_as_one_that_does_not_exist(service: Service) -> None:
    unknown = service.ask("a", f"/v1/packages/{ID_NONE}")

    assert unknown[0] == 404
    assert service.ask("a", f"/v1/packages/{ID_B}") == unknown
    assert service.ask("a", f"/v1/packages/{ID_B}/receipt", b"receipt") == unknown
    assert service.ask("a", f"/v1/packages/{ID_NONE}/receipt", b"receipt") == unknown
    assert service.desk.receipts == {}
    assert ID_B not in service.ask("a", "/v1/packages")[1].decode()


@pytest.mark.parametrize("package_id", [ID_A.upper(), ID_A.replace("-", ""), "1", "%2e%2e", f"{{{ID_A}}}"])
def test_only_the_canonical_form_of_an_id_exists(service: Service, package_id: str) -> None:
    assert service.ask("a", f"/v1/packages/{package_id}")[0] == 404


def test_a_receipt_is_kept_and_a_replay_recognised(service: Service) -> None:
    path = f"/v1/packages/{ID_A}/receipt"

    assert service.ask("a", path, b"receipt") == (201, b'{"result":"accepted"}')
    assert service.ask("a", path, b"receipt") == (200, b'{"result":"replayed"}')
    assert json.loads(service.ask("a", "/v1/packages")[1]) == {"packages": []}


def test_a_refused_receipt_names_every_reason(service: Service) -> None:
    status, content = service.ask("a", f"/v1/packages/{ID_A}/receipt", b"forged")

    assert status == 409
    assert json.loads(content)["hint"] == "signature does not fit; package id differs"


def test_a_receipt_is_bounded(service: Service) -> None:
    path = f"/v1/packages/{ID_A}/receipt"

    assert service.ask("a", path, bytes(MAX_RECEIPT))[0] == 201
    assert service.ask("a", path, bytes(MAX_RECEIPT + 1))[0] == 413


@pytest.mark.parametrize("path", ["/v1/packages", f"/v1/packages/{ID_A}", "/metrics"])
def test_a_certificate_of_the_pki_alone_gives_no_authority(service: Service, path: str) -> None:
    assert service.ask("unknown", path)[0] == 403
    assert service.ask("unknown", "/healthz")[0] == 200


def test_the_peer_is_never_read_from_a_header(service: Service) -> None:
    names = ("X-Client-Cert", "X-SSL-Client-Cert", "X-Forwarded-Client-Cert", "X-Forwarded-For", "peer_certificate")
    headers = dict.fromkeys(names, service.holders["a"].der.hex())

    assert service.ask("unknown", "/v1/packages", headers=headers)[0] == 403


def test_plain_http_is_not_answered(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=TIMEOUT)
    with pytest.raises((http.client.HTTPException, OSError)):
        answer_to(connection)
    connection.close()


def answer_to(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/healthz")
    return connection.getresponse().status


def test_readiness_is_red_when_the_token_is_gone(service: Service) -> None:
    assert service.ask("a", "/readyz") == (200, b'{"status":"ready"}')

    service.desk.well = (False, "the token is gone")

    assert service.ask("a", "/readyz") == (503, b'{"error":"not ready","hint":"the token is gone"}')
    assert service.ask("a", "/healthz") == (200, b'{"status":"alive"}')


def test_metrics_count_by_route_and_name_nobody(service: Service) -> None:
    service.ask("a", f"/v1/packages/{ID_A}")
    service.ask("a", f"/v1/packages/{ID_A}/receipt", b"receipt")
    service.ask("b", "/no/such/path")

    status, content = service.ask("utility", "/metrics")

    page = content.decode()
    assert status == 200
    assert 'hsmkm_requests_total{code="200",method="GET",route="/v1/packages/{package_id}"} 1' in page
    assert 'hsmkm_requests_total{code="404",method="GET",route="none"} 1' in page
    assert 'hsmkm_receipts_total{result="accepted"} 1' in page
    assert "hsmkm_packages_sent_total 1" in page
    assert "hsmkm_ready 1" in page
    assert 'hsmkm_refusals_total{kind="wrong-suite"} 2' in page
    assert ID_A not in page


def test_metrics_are_for_observers(service: Service) -> None:
    assert service.ask("a", "/metrics")[0] == 403


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TokenUnreachableError("token X is gone", "plug it in"), 503),
        (IntegrityError("row 7 was altered"), 500),
        (PolicyError("suspended"), 403),
        (RefusedError("no", ["expired"]), 409),
        (InputError("bad"), 422),
    ],
)
def test_an_error_becomes_an_answer_and_our_own_faults_stay_ours(
    service: Service, error: HsmkmError, status: int
) -> None:
    service.desk.error = error

    answered, content = service.ask("a", f"/v1/packages/{ID_A}")

    assert answered == status
    text = content.decode()
    assert (str(error) in text) == (status < 500)


METER = "4D4D4D0000BC614E"
APDU = b"\xdd protected end to end"


def test_an_apdu_is_carried_for_a_party_that_may(service: Service) -> None:
    path = f"/v1/meters/{METER}/apdu"

    assert service.ask("a", path, APDU) == (200, bytes.fromhex(METER) + APDU)
    status, content = service.ask("b", path, APDU)
    assert (status, b"may not reach" in content) == (403, True)
    assert service.ask("unknown", path, APDU)[0] == 403
    assert "hsmkm_apdus_carried_total 1" in service.ask("utility", "/metrics")[1].decode()


@pytest.mark.parametrize("title", ["4d4d4d0000bc614e", "4D4D", "..", "%2e%2e"])
def test_an_apdu_is_for_a_system_title(service: Service, title: str) -> None:
    assert service.ask("a", f"/v1/meters/{title}/apdu", APDU)[0] == 404


def test_an_apdu_is_bounded_and_a_meter_out_of_reach_is_told(service: Service) -> None:
    path = f"/v1/meters/{METER}/apdu"

    assert service.ask("a", path, bytes(LARGEST_APDU + 1))[0] == 413
    service.desk.error = TransportError("the meter does not answer")
    assert service.ask("a", path, APDU)[0] == 502


def revoked(service: Service) -> None:
    service.pki.write_crls(service.homes["aim"], revoked=[service.holders["a"]])


def crl_past_its_date(service: Service) -> None:
    service.pki.write_crls(service.homes["aim"], next_update=now() - DAY)


def crl_missing(service: Service) -> None:
    (service.homes["aim"] / "trust/crl/issuing.crl").unlink()


def crl_damaged(service: Service) -> None:
    (service.homes["aim"] / "trust/crl/issuing.crl").write_bytes(b"junk")


def expired(service: Service) -> None:
    use(service, service.pki.leaf(CONCENTRATOR, start=now() - 3 * DAY, end=now() - DAY))


def of_a_meter(service: Service) -> None:
    use(service, service.pki.leaf("4D4D4D0000BC614E", purposes=(), usages=("digital_signature",)))


def of_another_pki(service: Service) -> None:
    use(service, TlsPki("Another").leaf(CONCENTRATOR))


def use(service: Service, holder: Holder) -> None:
    """Show this certificate as party a, registered or not."""
    service.pki.home(service.homes["a"], holder)
    service.desk.parties[holder.der] = "a"


@pytest.mark.parametrize(
    "spoil", [revoked, crl_past_its_date, crl_missing, crl_damaged, expired, of_a_meter, of_another_pki]
)
def test_a_registered_party_with_a_certificate_that_does_not_hold_is_cut_off(
    service: Service, spoil: Callable[[Service], None]
) -> None:
    assert service.ask("a", "/healthz")[0] == 200
    spoil(service)

    with pytest.raises((OSError, http.client.HTTPException)):
        service.ask("a", "/healthz")


def test_a_client_without_a_certificate_is_cut_off(service: Service) -> None:
    context = ssl.create_default_context(cafile=service.homes["aim"] / "trust/anchors.pem")
    connection = http.client.HTTPSConnection("127.0.0.1", service.port, timeout=TIMEOUT, context=context)
    with pytest.raises((http.client.HTTPException, OSError)):
        answer_to(connection)
    connection.close()


def test_a_party_that_is_struck_off_is_refused_on_an_open_connection(service: Service) -> None:
    context = client_context(service.homes["a"], AIM)
    connection = http.client.HTTPSConnection("127.0.0.1", service.port, timeout=TIMEOUT, context=context)
    connection.request("GET", "/v1/packages")
    with connection.getresponse() as response:
        assert response.status == 200
        response.read()
    del service.desk.parties[service.holders["a"].der]

    connection.request("GET", "/v1/packages")
    with connection.getresponse() as response:
        assert response.status == 403
    connection.close()


def test_a_taken_port_is_said(service: Service) -> None:
    context = server_context(service.homes["aim"])

    with pytest.raises(TransportError, match="cannot listen"):
        make_server(create_app(service.desk), "127.0.0.1", service.port, context, lambda _port: None)


def test_a_concentrator_takes_what_waits_and_acknowledges_it(service: Service) -> None:
    assert fetch_packages(service.aim("a"), lambda package: b"receipt of " + package) == (ID_A,)
    assert service.desk.receipts == {ID_A: b"receipt of " + CONTENT_A}
    assert fetch_packages(service.aim("a"), lambda _package: b"") == ()


def test_an_unregistered_concentrator_is_told_what_to_do(service: Service) -> None:
    with pytest.raises(PolicyError) as refused:
        fetch_packages(service.aim("unknown"), lambda _package: b"")
    assert "registered" in refused.value.hint


def test_a_process_serves_until_sigterm_and_leaves_in_good_order(service: Service) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from hsmkm.link.tls import server_context\n"
        "from hsmkm.service.app import create_app\nfrom hsmkm.service.server import serve\n"
        "serve(create_app(None), '127.0.0.1', 0, server_context(Path(sys.argv[1])), lambda p: print(p, flush=True))\n"
        "print('stopped')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, service.homes["aim"]], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stdout
        with socket.create_connection(("127.0.0.1", int(process.stdout.readline())), TIMEOUT):
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "stopped\n"
    assert process.returncode == 0
