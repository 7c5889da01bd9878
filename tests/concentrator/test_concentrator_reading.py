"""A concentrator of kind client reads its meters by itself, at every moment of a renewal, and holds up nobody."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from hsmkm.config import data_folder
from hsmkm.steps import renew as renewing
from hsmkm.steps.communicate import conversation, find_meter
from hsmkm.steps.distribute import Given, await_receipts, distribute
from hsmkm.steps.distribute import activate as tell
from hsmkm.steps.party import Party, open_listing
from hsmkm.steps.register import held_key_set
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.steps.resolve import resolve
from hsmkm.store import audit, key_sets, meters
from hsmkm.store.key_set import KeyState
from tests.field import Field, energy, open_field, wait_until
from tests.realm import Realm, copy_realm, title_of

pytestmark = pytest.mark.slow

ENERGY = "1.0.1.8.0.255"
VALUE = 123_456
READING = {"attributes": ENERGY, "seconds": "1", "meter_seconds": "7"}


def states(realm: Realm, serial: int) -> list[tuple[int, str]]:
    """Key generations of the concentrator with their states, without opening its token."""
    with open_listing(realm.home("concentrator")) as store, store.read() as tx:
        found = key_sets.for_meter(tx, bytes.fromhex(title_of(serial)))
    return sorted((key_set.ref.generation, state.value) for key_set, state in found)


def actions(realm: Realm) -> list[str]:
    with open_listing(realm.home("concentrator")) as store, store.read() as tx:
        return [item.action for item in audit.log(tx, limit=10_000)]


def read_by_hand(realm: Realm, serial: int) -> list[int]:
    return [int(row["value"]) for row in realm.rows("concentrator", "meter", "read", title_of(serial), ENERGY)]


def readings(realm: Realm, serial: int) -> list[dict[str, Any]]:
    path = realm.home("concentrator") / "readings" / "readings.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["meter"] == title_of(serial)]


def speak_generally(realm: Realm) -> None:
    """Have the concentrator speak general-ciphering, with a wrapped key for whoever has the master key to wrap it."""
    text = (data_folder("models") / "virtual.toml").read_text(encoding="utf-8")
    folder = realm.home("concentrator") / "models"
    folder.mkdir()
    text, found = re.subn('form = "glo"', 'form = "general-ciphering"\nkey = "wrapped"', text)
    assert found == 1
    (folder / "virtual.toml").write_text(text, encoding="utf-8")


@contextmanager
def before_the_activation(monkeypatch: pytest.MonkeyPatch, look: Callable[[], None]) -> Iterator[None]:
    """Do something when the meter has its fresh keys and the concentrator was not told yet."""

    def activate(party: Party, given: Sequence[Given], wait: int) -> None:
        look()
        tell(party, given, wait)

    with monkeypatch.context() as patch:
        patch.setattr(renewing, "activate", activate)
        yield


def renewed(party: Party, *serials: int) -> None:
    outcomes = renew(party, [title_of(serial) for serial in serials], GLOBAL_KEYS, wait=30)
    assert [item.error for item in outcomes] == [None] * len(serials)


@pytest.fixture(scope="module")
def live(delivered_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with open_field(copy_realm(delivered_template, tmp_path_factory.mktemp("reading") / "realm")) as opened:
        opened.serve()
        opened.concentrate()
        yield opened


def test_a_client_reads_a_meter_that_took_a_part_of_the_fresh_keys_and_calls_nothing_in_force(live: Field) -> None:
    (outcome,) = live.register(live.meters(2, options=("--fault", "first-only")))
    assert outcome.state == "unknown"
    given = [(1, "active"), (2, "pre-active")]
    assert states(live.realm, 2) == given
    once = {"HSMKM_POLICY_ATTEMPTS_PER_DAY": "1"}
    done = live.realm.cli("concentrator", "meter", "read", title_of(2), ENERGY, environment=once)
    assert done.returncode == 1
    assert f"meter {title_of(2)} was tried 1 times in 24 hours" in done.stderr
    assert read_by_hand(live.realm, 2) == [VALUE]
    assert states(live.realm, 2) == given
    with live.realm.open("utility") as party:
        assert resolve(party, title_of(2)).state == "active"
    assert read_by_hand(live.realm, 2) == [VALUE]
    assert states(live.realm, 2)[-1][1] == "active"
    assert "generation-in-force" not in actions(live.realm)


def test_a_client_reads_between_the_switch_of_its_meter_and_the_activation_and_records_what_it_proved(
    live: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [item.error for item in live.register(live.meters(1))] == [None]
    assert states(live.realm, 1) == [(1, "deactivated"), (2, "active")]
    assert read_by_hand(live.realm, 1) == [VALUE]
    speak_generally(live.realm)
    assert read_by_hand(live.realm, 1) == [VALUE]
    seen: list[object] = []

    def look() -> None:
        seen.append(states(live.realm, 1)[-2:])
        seen.append(read_by_hand(live.realm, 1))
        seen.append(states(live.realm, 1)[-2:])

    with live.realm.open("utility") as party, before_the_activation(monkeypatch, look):
        renewed(party, 1)
        assert energy(party, 1) == VALUE
    proved = [(2, "deactivated"), (3, "active")]
    assert seen == [[(2, "active"), (3, "pre-active")], [VALUE], proved]
    assert states(live.realm, 1)[-2:] == proved
    assert live.package_states()[-1] == ("activation", "accepted")
    assert read_by_hand(live.realm, 1) == [VALUE]
    assert actions(live.realm).count("generation-in-force") == 1


@contextmanager
def silent_meter() -> Iterator[str]:
    """An address that takes connections and never answers."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in held:
                one.close()


def given(party: Party, serial: int, address: str) -> None:
    """Give a meter's keys to the concentrator, without a word to the meter."""
    meter = replace(find_meter(party, title_of(serial)), address=address, concentrator="concentrator")
    with party.store.begin("meter-register", meter.title, {}) as tx:
        meters.update(tx, meter)
    with conversation(party, meter) as speaking:
        sent = distribute(party, [(speaking, held_key_set(speaking))], KeyState.ACTIVE)
    await_receipts(party, sent, 30)


def test_it_reads_at_its_interval_without_a_gap_while_the_aim_renews_and_a_dead_meter_holds_up_nobody(
    field: Field,
) -> None:
    field.serve()
    running = field.concentrate(reading=READING)
    assert [item.error for item in field.register(field.meters(1))] == [None]
    wait_until(lambda: len(readings(field.realm, 1)) >= 2, running.log.read_text)
    with field.realm.open("utility") as party:
        for _ in range(2):
            renewed(party, 1)
        assert energy(party, 1) == VALUE
    enough = len(readings(field.realm, 1)) + 2
    wait_until(lambda: len(readings(field.realm, 1)) >= enough, running.log.read_text)
    lines = readings(field.realm, 1)
    assert [line for line in lines if line.get("value") != VALUE] == []
    generations = [line["generation"] for line in lines]
    assert generations == sorted(generations)
    assert generations[-1] == 4
    with silent_meter() as address, field.realm.open("utility") as party:
        given(party, 2, address)
        wait_until(lambda: bool(readings(field.realm, 2)), running.log.read_text)
        assert energy(party, 1) == VALUE
    assert "did not answer within 7 s, and the worker was ended" in readings(field.realm, 2)[0]["error"]
    found: list[CompletedProcess[str]] = []

    def is_not_well() -> bool:  # the service tells of its health after it wrote the reading
        found.append(field.realm.cli("concentrator", "concentrator", "health"))
        return found[-1].returncode == 1

    wait_until(is_not_well, running.log.read_text)
    health = found[-1]
    told = {row["check"]: row["state"] for row in json.loads(health.stdout)}
    assert told == {
        "process": "ok",
        "fetch": "ok",
        "reading": "ok",
        "meters": "not well",
        "refusals": "ok",
        f"meter {title_of(2)}": "not well",
    }
    running.stop()
    assert Path(field.realm.home("concentrator") / "readings" / "readings.jsonl").stat().st_mode & 0o077 == 0
