"""`hsmkm serve` of a real party: who gets in, what they see, and what happens when token or worker are gone."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hsmkm.errors import PartlyDoneError
from hsmkm.link.tls import client_context
from hsmkm.packages.receipt import receipt_for, sign_receipt
from hsmkm.steps.deliver import signatory
from hsmkm.steps.party import open_listing, utc_now
from hsmkm.steps.receive import receive_or_refuse
from hsmkm.store import packages
from tests.field import Field, Running, is_alive, open_field, wait_until
from tests.realm import TITLES, Realm, copy_realm, title_of
from tests.strangers import REASONS, Strangers, is_let_in, is_refused, list_past_its_date, make_strangers, revoke

pytestmark = pytest.mark.slow

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: aim\r\n\r\n"


@pytest.fixture(scope="module")
def live(delivered_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with open_field(copy_realm(delivered_template, tmp_path_factory.mktemp("service") / "realm")) as opened:
        yield opened


@pytest.fixture(scope="module")
def service(live: Field) -> Running:
    return live.serve()


@pytest.fixture(scope="module")
def strangers(live: Field, service: Running) -> Strangers:
    del service  # it runs before anything is revoked
    return make_strangers(live.realm)


@pytest.fixture(scope="module")
def waiting(live: Field, service: Running) -> str:
    """The id of a package that waits for the concentrator, which does not run."""
    del service
    (outcome,) = live.register([(title_of(1), "127.0.0.1:9")], wait=0)
    assert isinstance(outcome.error, PartlyDoneError)
    status, listed = live.ask(live.realm.home("concentrator"), "/v1/packages")
    assert status == 200
    return str(listed["packages"][0]["id"])


@pytest.mark.parametrize("stranger", REASONS)
def test_refuses_a_client(stranger: str, service: Running, strangers: Strangers) -> None:
    is_refused(service, strangers.context(stranger), REQUEST, REASONS[stranger])


def test_a_certificate_of_no_registered_party_sees_health_alone(
    live: Field, strangers: Strangers, waiting: str
) -> None:
    home = strangers.unregistered
    assert live.ask(home, "/healthz") == (200, {"status": "alive"})
    assert live.ask(home, "/readyz") == (200, {"status": "ready"})
    for path in ("/v1/packages", f"/v1/packages/{waiting}", "/metrics"):
        status, answer = live.ask(home, path)
        assert (status, answer["error"]) == (403, "the certificate belongs to no registered party")


def test_a_revocation_counts_from_the_next_connection_on(live: Field, service: Running, strangers: Strangers) -> None:
    home = live.realm.folder / "gone"
    shutil.copytree(strangers.unregistered, home)
    assert live.ask(home, "/healthz")[0] == 200
    revoke(live.realm, home, "utility")
    is_refused(service, client_context(home), REQUEST, REASONS["with a revoked certificate"])
    assert live.ask(live.realm.home("concentrator"), "/healthz")[0] == 200


def test_nobody_gets_in_once_the_revocation_list_is_past_its_date(live: Field, service: Running) -> None:
    registered = client_context(live.realm.home("concentrator"))
    with list_past_its_date(live.realm, "utility"):
        is_refused(service, registered, REQUEST, "CRL has expired")
    assert is_let_in(registered, service.port, REQUEST)


def test_another_concentrator_cannot_learn_of_a_package(live: Field, waiting: str) -> None:
    other = live.realm.home("other-concentrator")
    unknown = str(uuid.uuid4())
    mimicry = {
        "X-Client-Cert": "concentrator",
        "X-SSL-Client-S-DN": f"CN={TITLES['concentrator']}",
        "X-Forwarded-For": "127.0.0.1",
        "Forwarded": f'for=127.0.0.1;by="{TITLES["concentrator"]}"',
        "X-Forwarded-Client-Cert": f'Subject="CN={TITLES["concentrator"]}"',
        "Authorization": "Basic Y29uY2VudHJhdG9yOg==",
    }
    for headers in ({}, mimicry):
        assert live.ask(other, "/v1/packages", headers=headers) == (200, {"packages": []})
        answers = [live.ask(other, f"/v1/packages/{name}", headers=headers) for name in (waiting, unknown)]
        assert answers == [(404, {"error": "no such package", "hint": ""})] * 2
    status, content = live.ask(live.realm.home("concentrator"), f"/v1/packages/{waiting}")
    assert status == 200

    with live.realm.open("other-concentrator") as party:
        sender, now = signatory(party), utc_now()
        forged = sign_receipt(
            receipt_for(waiting, content, (), now), sender.signer, sender.certificate, sender.chain, now
        )
    with live.realm.open("concentrator") as party:
        genuine = receive_or_refuse(party, content)
    for receipt in (forged, genuine, b"anything"):
        posted = [live.ask(other, f"/v1/packages/{name}/receipt", receipt) for name in (waiting, unknown)]
        assert posted == [(404, {"error": "no such package", "hint": ""})] * 2
    assert _state(live, waiting) == "sent"

    mine = live.realm.home("concentrator")
    status, answer = live.ask(mine, f"/v1/packages/{waiting}/receipt", forged)
    assert (status, "not signed with the recipient's registered certificate" in answer["hint"]) == (409, True)
    assert _state(live, waiting) == "sent"
    assert live.ask(mine, f"/v1/packages/{waiting}/receipt", genuine) == (201, {"result": "accepted"})
    assert live.ask(mine, f"/v1/packages/{waiting}/receipt", genuine) == (200, {"result": "replayed"})
    status, answer = live.ask(mine, f"/v1/packages/{waiting}/receipt", forged)
    assert status == 409
    assert _state(live, waiting) == "accepted"


def _state(live: Field, package: str) -> str:
    with open_listing(live.realm.home("utility")) as store, store.read() as tx:
        found = packages.get(tx, package)
    assert found is not None
    return found.state


def test_metrics_are_for_the_party_itself_and_name_nobody(live: Field, service: Running) -> None:
    del service
    own = live.realm.home("utility")
    assert live.ask(own, "/v1/packages") == (200, {"packages": []})
    status, page = live.ask(own, "/metrics")
    assert status == 200
    text = page.decode()
    assert "hsmkm_ready 1\n" in text
    assert 'hsmkm_requests_total{code="200",method="GET",route="/v1/packages"}' in text
    assert not any(name in text for name in (*TITLES.values(), "concentrator", title_of(1)))
    for name in ("concentrator", "factory"):
        assert live.ask(live.realm.home(name), "/metrics")[0] == 403


def test_a_worker_that_died_is_replaced(live: Field, service: Running) -> None:
    home = live.realm.home("concentrator")
    (worker,) = service.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_alive(worker))
    assert live.ask(home, "/readyz") == (200, {"status": "ready"})
    assert service.workers() != [worker]


def test_a_token_that_is_gone_is_told_and_found_again(live: Field, service: Running) -> None:
    home = live.realm.home("concentrator")
    tokens, away = live.realm.home("utility") / "token" / "tokens", live.realm.folder / "away"
    tokens.rename(away)
    tokens.mkdir()
    try:
        wait_until(lambda: live.ask(home, "/readyz")[0] == 503)
        service.logged("not ready: ")
        assert "pkcs11" not in str(live.ask(home, "/readyz"))
        status, answer = live.ask(home, "/v1/packages")
        assert (status, answer["error"]) == (503, "the service cannot answer now")
        assert live.ask(home, "/healthz")[0] == 200
        for command in (["meter", "read", title_of(1), "1.0.1.8.0.255"], ["renew", title_of(1)], ["serve"]):
            done = live.realm.cli("utility", *command, environment={"HSMKM_SERVICE_LISTEN": "127.0.0.1:0"})
            assert (done.returncode, "no token matches" in done.stderr) == (3, True), done.stderr
    finally:
        tokens.rmdir()
        away.rename(tokens)
    wait_until(lambda: live.ask(home, "/readyz")[0] == 200)
    assert service.process.poll() is None


def test_packages_are_handed_out_while_the_keys_are_rotated_and_the_old_ones_retired(
    live: Field, service: Running
) -> None:
    home, stop, waiting = live.realm.home("concentrator"), threading.Event(), given(live, 3)
    answers: list[tuple[int, int]] = []

    def fetch() -> None:
        while not stop.is_set():
            status, listed = live.ask(home, "/v1/packages")
            answers.append((status, live.ask(home, f"/v1/packages/{waiting}")[0]))
            assert waiting in {item["id"] for item in listed["packages"]}

    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(fetch)
        try:
            wait_until(lambda: bool(answers))
            rows = live.realm.rows("utility", "token", "rotate")
            count = len(answers)
            wait_until(lambda: len(answers) > count)
            gone = live.realm.rows("utility", "token", "rotate", "--retire")
        finally:
            stop.set()
        fetching.result()
    assert {row["keys"] for row in rows} == {2}
    assert [row["key"] for row in gone] == ["gak-storage:1", "integrity:1", "storage:1"]
    assert set(answers) == {(200, 200)}
    assert service.process.poll() is None
    fresh = given(live, 4)
    assert live.ask(home, f"/v1/packages/{fresh}")[0] == 200
    assert live.realm.rows("utility", "store", "check") == []


def given(live: Field, serial: int) -> str:
    """Give the concentrator, which does not run, the keys of one more meter; the id of the package."""
    home = live.realm.home("concentrator")
    before = {item["id"] for item in live.ask(home, "/v1/packages")[1]["packages"]}
    (outcome,) = live.register([(title_of(serial), "127.0.0.1:9")], wait=0)
    assert isinstance(outcome.error, PartlyDoneError)
    (made,) = {item["id"] for item in live.ask(home, "/v1/packages")[1]["packages"]} - before
    return str(made)


def test_listings_need_no_token(live: Field, tmp_path: Path) -> None:
    shutil.copytree(live.realm.home("utility"), tmp_path / "utility", ignore=shutil.ignore_patterns("token"))
    listed = Realm(tmp_path).rows("utility", "meter", "list")
    assert {item["meter"] for item in listed} >= {title_of(1), title_of(2)}
