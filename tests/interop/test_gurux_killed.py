"""A command killed while a meter has its keys in hand: whoever comes next takes the meter over and finds the truth."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.interop.meter_relay import Dropped, Relay, relaying
from tests.interop.station import INJECTED, NEW, Station
from tests.realm import ACTOR, HSMKM, Realm

pytestmark = pytest.mark.slow

SECONDS = 240


class Held:
    """Holds back the answer to the first key_transfer until told to drop it; everything later passes."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.dropped = threading.Event()

    def __call__(self, number: int, answer: bytes) -> bytes:
        if number > 1:
            return answer
        self.arrived.set()
        self.dropped.wait(SECONDS)
        raise Dropped


@contextmanager
def held_back(port: int) -> Iterator[tuple[Relay, Held]]:
    held = Held()
    with relaying(port, held) as relay:
        try:
            yield relay, held
        finally:
            held.dropped.set()


def killed_at_transfer(realm: Realm, held: Held, whole_group: bool, *arguments: str) -> None:  # noqa: FBT001 - a test's parameter
    """Run a command and kill it, or it and its worker, when the answer to its key transfer is on its way."""
    command = [str(HSMKM), "--home", str(realm.home("factory")), "--actor", ACTOR, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        assert held.arrived.wait(SECONDS)
        if whole_group:
            os.killpg(run.pid, signal.SIGKILL)
        else:
            run.kill()
        assert run.wait(SECONDS) == -signal.SIGKILL


@pytest.mark.parametrize("whole_group", [True, False], ids=["with-its-worker", "alone"])
@pytest.mark.parametrize("fault", [(), ("--fault", "drop-before")], ids=["meter-took-it", "meter-did-not"])
def test_a_renewal_killed_after_its_key_transfer_is_resolved_right_afterwards(
    station: Station, fault: tuple[str, ...], *, whole_group: bool
) -> None:
    port = station.start(INJECTED, *fault)
    with held_back(port) as (relay, held):
        with station.realm.open("factory") as party:
            station.moved(party, INJECTED, relay.port)
        before = station.state_file(INJECTED).read_bytes()
        killed_at_transfer(station.realm, held, whole_group, "renew", INJECTED)
        (shown,) = [row for row in station.realm.rows("factory", "meter", "show", INJECTED) if row["state"] == "sent"]
        assert shown["kind"] == "renewal"
        (done,) = station.realm.rows("factory", "resolve", INJECTED)
        assert (done["state"], done["generation"]) == ("active", 3 if fault else 2)
        assert station.state_file(INJECTED).read_bytes() != before
        with station.realm.open("factory") as party:
            station.agrees(party, INJECTED)


def test_an_injection_killed_after_its_key_transfer_is_resolved_right_afterwards(station: Station) -> None:
    with held_back(station.start(NEW)) as (relay, held):
        killed_at_transfer(station.realm, held, False, "meter", "inject", NEW, "--address", f"127.0.0.1:{relay.port}")
        (done,) = station.realm.rows("factory", "resolve", "--all")
        assert done["state"] == "active"
        with station.realm.open("factory") as party:
            station.agrees(party, NEW)
            assert station.renewal_states(party, NEW) == ["abandoned", "active"]


def test_the_commands_say_in_doubt_with_exit_code_7_and_a_second_renewal_is_refused(station: Station) -> None:
    port = station.start(INJECTED, "--fault", "drop-after")
    with station.realm.open("factory") as party:
        station.moved(party, INJECTED, port)
    failed = station.realm.cli("factory", "renew", INJECTED)
    assert failed.returncode == 7
    assert f"hsmkm resolve {INJECTED}" in failed.stderr
    assert '"state": "unknown"' in failed.stdout
    refused = station.realm.cli("factory", "renew", INJECTED)
    assert refused.returncode == 1
    assert "is not finished: unknown" in refused.stderr
    (listed,) = station.realm.rows("factory", "meter", "list", "--in-doubt")
    assert (listed["meter"], listed["state"], listed["stage"]) == (INJECTED, "unknown", "guek+gak+gbek")
    assert "closed the connection" in listed["answer"]
    assert (listed["attempts"], listed["tried"], listed["hint"]) == (0, "", f"hsmkm resolve {INJECTED}")
    assert station.realm.rows("factory", "resolve", "--all")[0]["state"] == "active"
    assert station.realm.rows("factory", "meter", "list", "--in-doubt") == []
    (reading,) = station.realm.rows("factory", "meter", "read", INJECTED, "1.0.1.8.0.255")
    assert reading["value"] in (123_456, "123456")
