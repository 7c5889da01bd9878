"""Steps 5 to 7 with real processes: meters behind concentrators, registered, renewed, moved, and read through TLS."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest

from hsmkm.errors import InputError, RefusedError, TransportError
from hsmkm.packages.content import Purpose
from hsmkm.packages.receipt import open_receipt
from hsmkm.packages.send import outgoing
from hsmkm.steps.communicate import find_meter
from hsmkm.steps.deliver import send
from hsmkm.steps.receive import receive_or_refuse
from hsmkm.steps.renew import GLOBAL_KEYS, InDoubtError, renew
from hsmkm.steps.resolve import resolve, unfinished
from hsmkm.store import key_sets, renewals
from hsmkm.store.key_set import KeyState
from hsmkm.store.renewals import RenewalState
from tests.field import Field, energy, key_states, wait_until
from tests.realm import ACTOR, HSMKM, title_of

pytestmark = pytest.mark.slow


def test_a_client_holds_what_is_in_force_whoever_renews(field: Field) -> None:
    field.serve()
    concentrator = field.concentrate()
    outcomes = field.register(field.meters(1, 2))
    assert [(item.system_title, item.state, item.generation) for item in outcomes] == [
        (title_of(1), "active", 2),
        (title_of(2), "active", 2),
    ]
    with field.realm.open("utility") as party:
        assert energy(party, 1) == energy(party, 2)
        (again,) = renew(party, [title_of(1)], GLOBAL_KEYS, prove_refusal=True)
        assert (again.state, again.generation) == ("active", 3)
        assert energy(party, 1) > 0
        assert key_states(party, 1) == [(1, "deactivated"), (2, "deactivated"), (3, "active")]
    assert field.key_states("concentrator", 1) == [(1, "deactivated"), (2, "deactivated"), (3, "active")]
    assert field.key_states("concentrator", 2) == [(1, "deactivated"), (2, "active")]
    assert {state for _, state in field.package_states()} == {"accepted"}

    concentrator.stop()
    with field.realm.open("utility") as party, pytest.raises(TransportError):
        energy(party, 1)  # the meter listens, and nobody goes round the concentrator


def test_a_relay_knows_meters_without_keys_and_a_meter_that_moves_is_renewed(field: Field) -> None:
    field.serve()
    relay, client = field.concentrate("other-concentrator"), field.concentrate()
    (place,) = field.meters(1)
    field.register([place], "other-concentrator")
    assert field.address("other-concentrator", 1) == place[1]
    assert field.key_states("other-concentrator", 1) == []
    assert field.package_states(peer="other-concentrator") == [("distribution", "accepted")]

    (moved,) = field.register([place], "concentrator")
    assert (moved.state, moved.generation) == ("active", 3)
    assert field.key_states("concentrator", 1) == [(2, "deactivated"), (3, "active")]
    relay.stop()
    with field.realm.open("utility") as party:
        assert energy(party, 1) > 0

    relay = field.concentrate("other-concentrator")
    client.stop()
    (back,) = field.register([place], "other-concentrator")
    assert (back.state, back.generation) == ("active", 4)
    with field.realm.open("utility") as party:
        assert energy(party, 1) > 0
    assert field.key_states("other-concentrator", 1) == []
    assert field.key_states("concentrator", 1) == [(2, "deactivated"), (3, "active")]


def test_register_given_again_gives_no_keys_twice_and_renews_again(field: Field) -> None:
    field.serve()
    field.concentrate()
    places = field.meters(1)
    field.register(places)
    field.meters(1)
    (again,) = field.register(places)
    assert (again.error, again.state, again.generation) == (None, "active", 3)
    assert {state for _, state in field.package_states()} == {"accepted"}
    assert field.key_states("concentrator", 1) == [(1, "deactivated"), (2, "deactivated"), (3, "active")]


def test_a_meter_in_doubt_keeps_its_old_keys_in_force_at_the_client_until_it_is_resolved(field: Field) -> None:
    field.serve()
    field.concentrate()
    places = field.meters(1, options=("--fault", "drop-after"))
    (outcome,) = (item for item in field.register(places) if item.error)
    assert (outcome.state, type(outcome.error)) == ("unknown", InDoubtError)
    assert field.key_states("concentrator", 1) == [(1, "active"), (2, "pre-active")]

    (refused,) = field.register(places)
    assert isinstance(refused.error, RefusedError)
    assert refused.error.hint == f"finish it with: hsmkm resolve {title_of(1)}"

    with field.realm.open("utility") as party:
        assert resolve(party, title_of(1)).state == "active"
        assert energy(party, 1) > 0
        assert key_states(party, 1) == [(1, "deactivated"), (2, "active")]
    assert field.key_states("concentrator", 1) == [(1, "deactivated"), (2, "active")]


def test_a_meter_that_took_half_is_settled_and_the_client_is_given_what_it_holds(field: Field) -> None:
    field.serve()
    field.concentrate()
    field.register(field.meters(1, options=("--fault", "first-only")))
    with field.realm.open("utility") as party:
        settled = resolve(party, title_of(1), go_on=False)
        assert (settled.state, settled.generation) == ("abandoned", 3)
        assert energy(party, 1) > 0
    assert field.key_states("concentrator", 1) == [(1, "deactivated"), (2, "pre-active"), (3, "active")]


def test_what_cannot_be_registered_says_why_and_the_others_go_on(field: Field) -> None:
    field.serve()
    field.concentrate()
    (good,) = field.meters(1)
    outcomes = field.register([(title_of(2), "nowhere"), ("99", "127.0.0.1:9"), (title_of(3), "127.0.0.1:9"), good])
    by_title = {item.system_title: item for item in outcomes}
    assert isinstance(by_title[title_of(2)].error, InputError)
    assert isinstance(by_title["99"].error, RefusedError)
    assert isinstance(by_title[title_of(3)].error, TransportError)
    assert by_title[title_of(1)].error is None
    with field.realm.open("utility") as party, party.store.read() as tx:
        assert [item.state for item in renewals.listing(tx, bytes.fromhex(title_of(1)))] == [RenewalState.ACTIVE]
        assert renewals.listing(tx, bytes.fromhex(title_of(3))) == []
    (nobody,) = field.register([good], "factory")
    assert "factory is no concentrator" in nobody.detail


def test_a_service_that_is_away_delays_a_registration_and_loses_nothing(field: Field) -> None:
    service = field.serve()
    field.concentrate()
    (place,) = field.meters(1)
    service.kill()
    first = field.realm.cli("utility", *_register(place), "--wait", "1")
    assert first.returncode == 7, first.stderr
    assert "it waits there for the concentrator" in first.stderr
    assert field.package_states() == [("distribution", "sent")]

    service = field.serve()
    command = [str(HSMKM), "--home", str(field.realm.home("utility")), "--output", "json", "--actor", ACTOR]
    with subprocess.Popen(
        [*command, *_register(place)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as second:
        wait_until(lambda: len(field.package_states()) > 1)
        service.kill()
        field.serve()
        stdout, stderr = second.communicate(timeout=90)
    assert second.returncode == 0, stderr
    assert [(item["state"], item["generation"]) for item in json.loads(stdout)] == [("active", 2)]
    assert {state for _, state in field.package_states()} == {"accepted"}
    assert field.key_states("concentrator", 1) == [(1, "deactivated"), (2, "active")]
    (row,) = field.realm.rows("utility", "meter", "read", title_of(1), "1.0.1.8.0.255")
    assert int(row["value"]) > 0


def test_an_activation_of_what_is_not_held_is_refused_for_good_and_holds_nothing_up(field: Field) -> None:
    with field.realm.open("utility") as party:
        meter = find_meter(party, title_of(1))
        with party.store.read() as tx:
            key_set = key_sets.newest(tx, meter.system_title, 0, 1)
        assert key_set is not None
        given = send(party, Purpose.DISTRIBUTION, "concentrator", [outgoing(meter, key_set, KeyState.ACTIVE)])
        item = outgoing(meter, key_set, KeyState.ACTIVE, with_keys=False)
        stray = replace(item, entry=replace(item.entry, generation=0))
        activation = send(party, Purpose.ACTIVATION, "concentrator", [stray])
    with field.realm.open("concentrator") as party:
        receipts = [receive_or_refuse(party, sent.path.read_bytes()) for sent in (given, activation)]
        assert key_states(party, 1) == [(1, "active")]
    assert [open_receipt(receipt)[0].accepted for receipt in receipts] == [True, False]


def _register(place: tuple[str, str]) -> list[str]:
    title, address = place
    return ["meter", "register", title, "--address", address, "--concentrator", "concentrator"]


def test_a_client_that_was_not_told_of_the_switch_before_a_crash_is_told_by_resolve(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    field.serve()
    field.concentrate()
    field.register(field.meters(1))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hsmkm.steps.renew.activate", crash)
    with field.realm.open("utility") as party, pytest.raises(KeyboardInterrupt):
        renew(party, [title_of(1)], GLOBAL_KEYS)
    assert field.key_states("concentrator", 1)[-1] == (3, "pre-active")
    monkeypatch.undo()
    with field.realm.open("utility") as party:
        assert unfinished(party) == [title_of(1)]
        assert resolve(party, title_of(1)).detail == "its concentrator is told of the keys in force"
        assert unfinished(party) == []
    assert field.key_states("concentrator", 1)[-2:] == [(2, "deactivated"), (3, "active")]
