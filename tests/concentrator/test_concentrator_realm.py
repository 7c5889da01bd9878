"""`hsmkm concentrator run` of a real party: who may use the relay, and what survives when something dies."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from hsmkm.errors import PartlyDoneError, TransportError
from hsmkm.link.gateway import Direction, GatewayFrame
from hsmkm.link.tls import client_context, server_context
from hsmkm.link.wrapper import Frame
from hsmkm.service.app import create_app
from hsmkm.service.desk import ReceiptOutcome
from hsmkm.service.party_desk import PartyDesk
from hsmkm.service.server import make_server
from hsmkm.steps.party import open_party
from hsmkm.token.standing import StandingWorker
from hsmkm.token.workers import Worker
from tests.field import Field, Running, energy, is_alive, open_field, wait_until
from tests.realm import ACTOR, Realm, copy_realm, title_of
from tests.strangers import REASONS, Strangers, is_refused, list_past_its_date, make_strangers, revoke

pytestmark = pytest.mark.slow

UNKNOWN_METER = bytes.fromhex(title_of(4711))
REQUEST = Frame(1, 1, GatewayFrame(Direction.REQUEST, 0, UNKNOWN_METER, b"\x00").encode()).encode()
LET_IN = f"meter {title_of(4711)} is not one of ours"
NO_HEAD_END = "the TLS certificate is not that of a head end"


@pytest.fixture(scope="module")
def live(delivered_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with open_field(copy_realm(delivered_template, tmp_path_factory.mktemp("concentrator") / "realm")) as opened:
        opened.serve()
        yield opened


@pytest.fixture(scope="module")
def relay(live: Field) -> Running:
    return live.concentrate()


@pytest.fixture(scope="module")
def strangers(live: Field, relay: Running) -> Strangers:
    del relay  # it runs before anything is revoked
    return make_strangers(live.realm)


@pytest.mark.parametrize("stranger", REASONS)
def test_the_relay_refuses_a_client(stranger: str, relay: Running, strangers: Strangers) -> None:
    is_refused(relay, strangers.context(stranger), REQUEST, REASONS[stranger])


def test_the_relay_is_for_the_head_end_alone(live: Field, relay: Running, strangers: Strangers) -> None:
    is_refused(relay, client_context(live.realm.home("utility")), REQUEST, LET_IN)
    for name in ("concentrator", "other-concentrator", "factory", "authority"):
        if (live.realm.home(name) / "certificates" / "tls.pem").is_file():
            is_refused(relay, client_context(live.realm.home(name)), REQUEST, NO_HEAD_END)
    is_refused(relay, client_context(strangers.unregistered), REQUEST, NO_HEAD_END)


def test_a_revocation_counts_from_the_next_connection_on(live: Field, relay: Running, strangers: Strangers) -> None:
    home = live.realm.folder / "gone"
    shutil.copytree(strangers.unregistered, home)
    is_refused(relay, client_context(home), REQUEST, NO_HEAD_END)
    revoke(live.realm, home, "concentrator")
    is_refused(relay, client_context(home), REQUEST, REASONS["with a revoked certificate"])
    is_refused(relay, client_context(live.realm.home("utility")), REQUEST, LET_IN)


def test_not_even_the_head_end_gets_in_once_the_revocation_list_is_past_its_date(live: Field, relay: Running) -> None:
    head_end = client_context(live.realm.home("utility"))
    with list_past_its_date(live.realm, "concentrator"):
        is_refused(relay, head_end, REQUEST, "CRL has expired")
    is_refused(relay, head_end, REQUEST, LET_IN)


def test_a_worker_that_died_is_replaced(live: Field, relay: Running) -> None:
    (worker,) = relay.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_alive(worker))
    is_refused(relay, client_context(live.realm.home("utility")), REQUEST, LET_IN)


def test_the_concentrator_goes_on_when_the_aim_is_back(field: Field) -> None:
    service = field.serve()
    service.stop()
    concentrator = field.concentrate()
    concentrator.logged("the AIM at 127.0.0.1 port")
    places = field.meters(1)
    assert [type(item.error) for item in field.register(places, wait=0)] == [PartlyDoneError]
    field.serve()
    assert [item.error for item in field.register(places)] == [None]
    with field.realm.open("utility") as party:
        assert energy(party, 1) > 0
    concentrator.stop()
    with field.realm.open("utility") as party, pytest.raises(TransportError):
        energy(party, 1)


@dataclass(frozen=True, slots=True)
class DeafDesk(PartyDesk):
    """A desk that hears receipts and, until it listens, does not take them in and does not answer."""

    heard: list[bytes] = field(default_factory=list)
    listens: threading.Event = field(default_factory=threading.Event)

    def receipt(self, party: str, package_id: str, content: bytes) -> ReceiptOutcome:
        self.heard.append(content)
        if len(self.heard) == 1:
            self.listens.wait(60)
            raise TransportError("too late")
        return PartyDesk.receipt(self, party, package_id, content)


@contextmanager
def deaf_service(live: Field) -> Iterator[DeafDesk]:
    home = live.realm.home("utility")
    with StandingWorker(lambda: Worker(open_party, home, ACTOR)) as worker:
        desk = DeafDesk(home, worker)
        listening = threading.Event()

        def ready(port: int) -> None:
            live.ports["utility"] = port
            listening.set()

        server = make_server(create_app(desk), "127.0.0.1", 0, server_context(home), ready)
        thread = threading.Thread(target=server.serve_until_stopped)
        thread.start()
        try:
            assert listening.wait(30)
            yield desk
        finally:
            desk.listens.set()
            server.should_exit = True
            thread.join(30)


def test_a_concentrator_killed_before_its_receipt_arrived_posts_the_same_one_later(field: Field) -> None:
    with deaf_service(field) as desk:
        concentrator = field.concentrate()
        (outcome,) = field.register([(title_of(1), "127.0.0.1:9")], wait=0)
        assert isinstance(outcome.error, PartlyDoneError)
        wait_until(lambda: len(desk.heard) == 1)
        concentrator.kill()
        assert field.package_states("concentrator", "utility") == [("distribution", "receipted")]
        assert field.package_states() == [("distribution", "sent")]

        field.concentrate()
        wait_until(lambda: field.package_states() == [("distribution", "accepted")])
        assert desk.heard == [desk.heard[0]] * 2
    assert field.key_states("concentrator", 1) == [(1, "active")]
