"""Inject, renew and resolve against the independent meter: whatever it does, store and meter end with the same keys."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hsmkm.errors import HsmkmError, PartlyDoneError, ProtocolError, RefusedError, TransportError
from hsmkm.link.client import MeterRefusedError
from hsmkm.steps import communicate
from hsmkm.steps.in_doubt import in_doubt
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.renew import ALL_KEYS, GLOBAL_KEYS, InDoubtError, renew
from hsmkm.steps.resolve import resolve
from hsmkm.steps.results import Outcome
from hsmkm.token.types import KeyRole
from tests.interop.meter_relay import Dropped, relaying
from tests.interop.station import INJECTED, NEW, Station, stranger

pytestmark = pytest.mark.slow

ACTIVATIONS = ("now", "after-response", "release")
FAULTS = ("reject", "drop-before", "drop-after", "lie", "first-only")
SPURIOUS = ("lie", "first-only")
"""Faults that a broadcast key alone cannot show: the meter says yes and no association depends on it."""


def begun(party: Party, title: str, work: str, port: int) -> Outcome:
    if work == "inject":
        return inject(party, title, f"127.0.0.1:{port}")
    (outcome,) = renew(party, [title], (KeyRole.GBEK,))
    return outcome


def finish(party: Party, title: str, outcome: Outcome, rounds: int) -> int:
    """Resolve until the meter is done, and give the rounds it took; every failure on the way is one in doubt."""
    for taken in range(rounds + 1):
        if outcome.error is None:
            return taken
        assert isinstance(outcome.error, PartlyDoneError)
        try:
            outcome = resolve(party, title)
        except PartlyDoneError as error:
            outcome = Outcome(title, "unknown", 0, error.message, error)
    raise AssertionError(outcome)


@pytest.mark.parametrize("reset", [(), ("--ic-reset",)], ids=["counter-goes-on", "counter-restarts"])
@pytest.mark.parametrize("activate", ACTIVATIONS)
def test_every_key_is_injected_then_renewed(station: Station, activate: str, reset: tuple[str, ...]) -> None:
    # Such a meter answers under the old GUEK with a counter it has restarted, as a recording would: it is refused.
    in_doubt = activate == "now" and bool(reset)
    port = station.start(NEW, "--activate", activate, *reset)
    with station.realm.open("factory") as party:
        outcome = begun(party, NEW, "inject", port)
        assert finish(party, NEW, outcome, 1) == int(in_doubt)
        station.agrees(party, NEW)
        for roles in (GLOBAL_KEYS, ALL_KEYS):
            (outcome,) = renew(party, [NEW], roles, prove_refusal=True)
            assert finish(party, NEW, outcome, 1) == int(in_doubt)
            station.agrees(party, NEW)
    initial = station.realm.initial_keys()
    held = station.meter_keys(NEW)
    assert not set(held.values()) & set(initial.values())
    assert len(set(held.values())) == 4
    with pytest.raises(MeterRefusedError), stranger(port, NEW, initial):
        pass
    with stranger(port, NEW, held):
        pass


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", ["inject", "broadcast"])
def test_a_meter_that_fails_at_key_transfer_ends_with_the_keys_the_store_calls_active(
    station: Station, work: str, fault: str
) -> None:
    """The faults of all other renewals are tests/faults/harness_meters.py."""
    title = NEW if work == "inject" else INJECTED
    port = station.start(title, "--fault", fault)
    with station.realm.open("factory") as party:
        station.moved(party, title, port)
        outcome = begun(party, title, work, port)
        if work == "broadcast" and fault in SPURIOUS:
            assert outcome.state == "active"
            return
        assert {outcome.state, station.renewal_states(party, title)[-1]} == {"unknown"}
        assert isinstance(outcome.error, InDoubtError)
        assert finish(party, title, outcome, 2) == 1
        station.agrees(party, title)
        assert station.key_states(party, title).count("active") == 1
    if work == "inject":
        initial = station.realm.initial_keys()
        assert not set(station.meter_keys(title).values()) & set(initial.values())
        with pytest.raises(MeterRefusedError), stranger(port, title, initial):
            pass


def test_what_a_meter_said_yes_to_stays_known_while_it_cannot_be_asked(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = station.start(INJECTED)
    with station.realm.open("factory") as party:
        station.moved(party, INJECTED, port)
        before = station.meter_keys(INJECTED)["gbek"]
        with monkeypatch.context() as broken_off:
            broken_off.setattr(communicate, "_release", interrupted)
            with pytest.raises(KeyboardInterrupt):
                renew(party, [INJECTED], (KeyRole.GBEK,))
        assert station.renewal_states(party, INJECTED)[-1] == "acknowledged"
        with listening(b"") as nobody:
            station.moved(party, INJECTED, nobody)
            with pytest.raises(InDoubtError):
                resolve(party, INJECTED)
        assert station.renewal_states(party, INJECTED)[-1] == "unknown"
        station.moved(party, INJECTED, port)
        assert resolve(party, INJECTED, go_on=False).state == "active"
        station.agrees(party, INJECTED)
    assert station.meter_keys(INJECTED)["gbek"] != before


def interrupted(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_what_is_true_is_recorded_without_sending_more_and_injection_goes_on_with_fresh_keys(station: Station) -> None:
    port = station.start(NEW, "--fault", "reject")
    with station.realm.open("factory") as party:
        assert inject(party, NEW, f"127.0.0.1:{port}").state == "unknown"
        first = station.sent_guek(party, NEW, 1)
        assert resolve(party, NEW, go_on=False).state == "abandoned"
        outcome = inject(party, NEW, f"127.0.0.1:{port}")
        assert (outcome.state, outcome.generation) == ("active", 2)
        station.agrees(party, NEW)
    assert station.meter_keys(NEW)["guek"] != first


def test_a_meter_left_with_an_initial_key_is_neither_injected_nor_delivered(station: Station) -> None:
    port = station.start(NEW, "--fault", "first-only")
    with station.realm.open("factory") as party:
        assert inject(party, NEW, f"127.0.0.1:{port}").state == "unknown"
        assert resolve(party, NEW, go_on=False).state == "abandoned"
        with pytest.raises(RefusedError) as refused:
            station.store_keys(party, NEW)
        assert "inject it" in refused.value.reasons[0]
        assert inject(party, NEW, f"127.0.0.1:{port}").error is None
        station.agrees(party, NEW)


INITIATE_ERROR = bytes.fromhex("0E010602")


def swapped(request: bytes, answer: bytes) -> bytes:
    """Put the wrapper's header before an initiate error, with the service access points of the request."""
    head = request[:2] + request[4:6] + request[2:4] + len(answer).to_bytes(2, "big")
    return head + answer if answer == INITIATE_ERROR else answer


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """Accept connections and answer each request with these octets: none closes, None stays silent."""

    def serve(server: socket.socket, kept: list[socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                kept.append(client)
                request = client.recv(4096)
                if answer is not None:
                    client.sendall(swapped(request, answer))
                    client.close()

    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server, kept), daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for client in kept:
        client.close()


NOT_A_METER = [
    pytest.param(None, TransportError, id="silent"),
    pytest.param(b"", TransportError, id="closes"),
    pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError, id="another-protocol"),
    pytest.param(bytes.fromhex("0001000100010003610102"), ProtocolError, id="broken-answer"),
    pytest.param(INITIATE_ERROR, MeterRefusedError, id="refuses"),
]


@pytest.mark.parametrize(("answer", "error"), NOT_A_METER)
def test_nothing_is_lost_on_what_is_no_meter_and_the_provisioned_keys_go_in_later(
    station: Station, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, error: type[HsmkmError]
) -> None:
    monkeypatch.setenv("HSMKM_DLMS_TIMEOUT_SECONDS", "1")
    with station.realm.open("factory") as party, listening(answer) as wrong:
        outcome = inject(party, NEW, f"127.0.0.1:{wrong}")
        assert isinstance(outcome.error, error)
        assert (outcome.state, outcome.error.exit_code) == ("failed", 1)
        assert (station.renewal_states(party, NEW), station.key_states(party, NEW)) == (["abandoned"], ["pre-active"])
        outcome = inject(party, NEW, f"127.0.0.1:{station.start(NEW)}")
        assert (outcome.state, outcome.generation) == ("active", 1)
        station.agrees(party, NEW)


def test_a_meter_that_cannot_be_resolved_is_listed_with_what_was_tried_and_what_to_do(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HSMKM_POLICY_ATTEMPTS_PER_DAY", "5")
    port = station.start(INJECTED, "--fault", "drop-before")
    with station.realm.open("factory") as party:
        station.moved(party, INJECTED, port)
        (outcome,) = renew(party, [INJECTED], GLOBAL_KEYS)
        assert outcome.state == "unknown"
        station.moved(party, INJECTED, station.start(INJECTED, "--state", "", "--gak", "00" * 16))
        for _ in range(2):
            with pytest.raises(InDoubtError):
                resolve(party, INJECTED)
        with party.store.read() as tx:
            (doubt,) = in_doubt(tx, 5, utc_now())
    assert (doubt.meter, doubt.state, doubt.stage, doubt.attempts) == (INJECTED, "unknown", "guek+gak+gbek", 5)
    assert doubt.tried.split("; ")[0] == "guek 1, gak 1 (2x)"
    assert "refused" in doubt.answer
    assert doubt.hint.startswith(f"tried 5 times in 24 hours: hsmkm resolve {INJECTED} after ")


def test_a_meter_with_other_keys_refuses_and_stays_as_it_is(station: Station) -> None:
    port = station.start(NEW, "--gak", "00" * 16)
    with station.realm.open("factory") as party:
        outcome = inject(party, NEW, f"127.0.0.1:{port}")
        assert isinstance(outcome.error, MeterRefusedError)
        assert station.key_states(party, NEW) == ["pre-active"]


@pytest.mark.parametrize("answer", [case.values[0] for case in NOT_A_METER], ids=[case.id for case in NOT_A_METER])
def test_a_meter_lost_in_the_midst_stays_in_doubt_until_it_is_back(
    station: Station, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    monkeypatch.setenv("HSMKM_DLMS_TIMEOUT_SECONDS", "1")
    port = station.start(INJECTED)
    with station.realm.open("factory") as party, relaying(port, lambda _number, _answer: dropped(answer)) as relay:
        station.moved(party, INJECTED, relay.port)
        (outcome,) = renew(party, [INJECTED], GLOBAL_KEYS)
        assert outcome.state == "unknown"
        with listening(answer) as wrong:
            station.moved(party, INJECTED, wrong)
            with pytest.raises(InDoubtError):
                resolve(party, INJECTED)
        assert station.renewal_states(party, INJECTED)[-1] == "unknown"
        station.moved(party, INJECTED, port)
        assert resolve(party, INJECTED).state == "active"
        station.agrees(party, INJECTED)


def dropped(answer: bytes | None) -> bytes:
    if not answer:
        raise Dropped
    return swapped(bytes.fromhex("000100010001"), answer)


def test_a_counter_within_the_policy_is_followed_and_one_beyond_it_refused(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = station.start(NEW, "--ic", "3000000")
    with station.realm.open("factory") as party:
        outcome = inject(party, NEW, f"127.0.0.1:{port}")
        assert isinstance(outcome.error, RefusedError)
        assert "3000000" in outcome.error.message
        assert station.key_states(party, NEW) == ["pre-active"]
    monkeypatch.setenv("HSMKM_POLICY_MAX_COUNTER_JUMP", "5000000")
    with station.realm.open("factory") as party:
        assert inject(party, NEW, f"127.0.0.1:{port}").generation == 1
        station.agrees(party, NEW)


def test_a_counter_far_off_keeps_a_meter_in_doubt_until_the_policy_allows_it(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = station.start(INJECTED, "--fault", "drop-after")
    with station.realm.open("factory") as party:
        station.moved(party, INJECTED, port)
        (outcome,) = renew(party, [INJECTED], GLOBAL_KEYS)
        assert outcome.state == "unknown"
        state = json.loads(station.state_file(INJECTED).read_text())
        station.state_file(INJECTED).write_text(json.dumps(state | {"rx_ic": 3_000_000}))
        port = station.start(INJECTED)
        station.moved(party, INJECTED, port)
        with pytest.raises(RefusedError, match="3000000"):
            resolve(party, INJECTED)
        assert station.renewal_states(party, INJECTED)[-1] == "unknown"
    monkeypatch.setenv("HSMKM_POLICY_MAX_COUNTER_JUMP", "5000000")
    with station.realm.open("factory") as party:
        assert finish(party, INJECTED, outcome, 1) == 1
        station.agrees(party, INJECTED)
