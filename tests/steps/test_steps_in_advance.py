"""Step 5 in advance: a list of meters is put behind a concentrator, package by package, and finished later."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hsmkm.errors import InputError, PartlyDoneError, RefusedError
from hsmkm.packages.receive import inspect_package
from hsmkm.steps import deliver, in_advance
from hsmkm.steps.deliver import accept_receipt
from hsmkm.steps.exporting import export
from hsmkm.steps.in_advance import register_in_advance
from hsmkm.steps.life import compromise
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_file
from hsmkm.steps.results import Outcome, Sent, Told
from hsmkm.store import holders, key_sets, meters, packages
from hsmkm.store.key_set import KeyState
from tests.realm import Realm, title_of

SERIALS = (1, 2, 3, 4, 5)
CLIENT, RELAY = "concentrator", "other-concentrator"


@pytest.fixture
def delivered(realm: Realm) -> Realm:
    """A realm whose utility has five meters that nobody has spoken with."""
    with realm.open("factory") as party:
        order = provision(party, realm.order(*SERIALS), "line").order
        sent = export(party, "delivery", "utility", (), order)
    with realm.open("utility") as party:
        receive_file(party, sent.path)
    return realm


def places(realm: Realm, *lines: str) -> Path:
    path = realm.folder / "places.csv"
    every = [f"{title_of(serial)},10.0.0.{serial}:4059" for serial in SERIALS]
    path.write_text("".join(f"{line}\n" for line in lines or every))
    return path


def told(party: Party, path: Path, concentrator: str = CLIENT) -> list[Told | Outcome]:
    return list(register_in_advance(party, path, concentrator, 0))


def where(party: Party) -> list[tuple[str | None, str | None, bool]]:
    with party.store.read() as tx:
        return [(one.concentrator, one.address, one.registered is not None) for one in meters.listing(tx)]


def carry(realm: Realm, found: list[Told | Outcome], concentrator: str) -> None:
    """Take the packages to the concentrator, and its receipts back."""
    with realm.open(concentrator) as party:
        receipts = [receive_file(party, item.sent.path).receipt for item in found if isinstance(item, Told)]
    with realm.open("utility") as party:
        for receipt in receipts:
            accept_receipt(party, receipt)


def test_a_client_gets_the_keys_of_the_whole_list_in_one_package(delivered: Realm) -> None:
    path = places(delivered)
    with delivered.open("utility") as party:
        (one,) = told(party, path)
        assert isinstance(one, Told)
        assert (one.sent.meters, one.state, type(one.error)) == (5, "waiting", PartlyDoneError)
        assert where(party) == [(CLIENT, f"10.0.0.{serial}:4059", False) for serial in SERIALS]
    carry(delivered, [one], CLIENT)
    with delivered.open(CLIENT) as party, party.store.read() as tx:
        for serial in SERIALS:
            ((key_set, state),) = key_sets.for_meter(tx, bytes.fromhex(title_of(serial)))
            assert (state, sorted(key.role.value for key in key_set.keys)) == (KeyState.ACTIVE, ["gak", "gbek", "guek"])
    with delivered.open("utility") as party, party.store.read() as tx:
        given = holders.for_meters(tx, [bytes.fromhex(title_of(serial)) for serial in SERIALS])
        assert sum(item.party == CLIENT for item in given) == 15
        assert {(item.party, item.package_id) for item in holders.for_meter(tx, bytes.fromhex(title_of(1)))} == {
            (item.party, item.package_id) for item in given
        }


def test_given_again_it_gives_no_keys_twice_and_waits_for_what_was_given(delivered: Realm) -> None:
    path = places(delivered)
    with delivered.open("utility") as party:
        (first,) = told(party, path)
        again = told(party, path)
    waiting, second = (item.sent for item in again if isinstance(item, Told))
    assert isinstance(first, Told)
    assert waiting.id == first.sent.id
    assert [entry.keys for entry in inspect_package(second.path.read_bytes()).content.meters] == [()] * 5
    carry(delivered, again, CLIENT)
    with delivered.open("utility") as party:
        assert [item.state for item in told(party, path) if isinstance(item, Told)] == ["waiting"]


def test_a_relay_is_told_of_meters_without_keys(delivered: Realm) -> None:
    with delivered.open("utility") as party:
        found = told(party, places(delivered), RELAY)
    carry(delivered, found, RELAY)
    with delivered.open(RELAY) as party:
        assert [address for _, address, _ in where(party)] == [f"10.0.0.{serial}:4059" for serial in SERIALS]
        with party.store.read() as tx:
            assert key_sets.for_meter(tx, bytes.fromhex(title_of(1))) == []


def test_a_list_of_more_meters_than_a_package_takes_goes_in_several(
    delivered: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_advance, "MAX_METERS", 2)
    with delivered.open("utility") as party:
        found = told(party, places(delivered))
        assert [item.sent.meters for item in found if isinstance(item, Told)] == [2, 2, 1]
        assert {concentrator for concentrator, _, _ in where(party)} == {CLIENT}


def test_what_cannot_be_registered_says_why_and_the_others_go_on(delivered: Realm) -> None:
    lines = ("2,10.0.0.2:4059", f"{title_of(2)},10.0.0.9:4059", "99,10.0.0.9:4059", f"{title_of(3)},nowhere")
    with delivered.open("utility") as party:
        *failed, good = told(party, places(delivered, *lines))
        assert isinstance(good, Told)
        assert good.sent.meters == 1
        assert [
            (item.system_title, item.error.message) for item in failed if isinstance(item, Outcome) and item.error
        ] == [
            (title_of(2), f"meter {title_of(2)} stands in the list twice"),
            ("99", "there is no meter with title or serial number 99"),
            (title_of(3), f"meter {title_of(3)} has no usable address: 'nowhere'"),
        ]
        assert [concentrator for concentrator, _, _ in where(party)] == [None, CLIENT, None, None, None]


def test_a_list_with_faults_or_for_no_concentrator_changes_nothing(delivered: Realm) -> None:
    with delivered.open("utility") as party:
        with pytest.raises(InputError) as refused:
            told(party, places(delivered, f"{title_of(1)},10.0.0.1:4059", "what", "a,b,c"))
        assert [(fault.line, fault.text) for fault in refused.value.faults] == [
            (2, "must be METER,HOST:PORT"),
            (3, "must be METER,HOST:PORT"),
        ]
        with pytest.raises(RefusedError, match="factory is no concentrator"):
            told(party, places(delivered), "factory")
        assert {concentrator for concentrator, _, _ in where(party)} == {None}


def test_a_meter_that_changes_meanwhile_is_not_told_of(delivered: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    def after_a_change(party: Party, *args: object) -> object:
        with party.store.begin("meter-address", title_of(3), {}) as tx:
            meters.update(tx, replace(meters.require(tx, bytes.fromhex(title_of(3))), address="10.9.9.9:1"))
        return deliver.send(party, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(in_advance, "send", after_a_change)
    with delivered.open("utility") as party:
        with pytest.raises(RefusedError, match=f"{title_of(3)} was changed by another"):
            told(party, places(delivered))
        assert {concentrator for concentrator, _, _ in where(party)} == {None}


def test_keys_that_are_compromised_meanwhile_are_not_given(delivered: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    def after_a_compromise(party: Party, *args: object) -> object:
        compromise(party, [title_of(2)], "its line was seen")
        return deliver.send(party, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(in_advance, "send", after_a_compromise)
    with delivered.open("utility") as party:
        with pytest.raises(RefusedError, match=f"{title_of(2)} was changed by another"):
            told(party, places(delivered, *(f"{title_of(serial)},10.0.0.1:4059" for serial in (1, 2, 3))))
        assert {concentrator for concentrator, _, _ in where(party)} == {None}
    assert not list(delivered.home("utility").glob("packages/*.partial"))


def test_what_was_sent_before_a_refusal_is_told_of(delivered: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Sent] = []

    def refused_the_second_time(*args: object) -> Sent:
        if sent:
            raise RefusedError("the second is refused")
        sent.append(deliver.send(*args))  # type: ignore[arg-type]
        return sent[0]

    monkeypatch.setattr(in_advance, "MAX_METERS", 1)
    monkeypatch.setattr(in_advance, "send", refused_the_second_time)
    with delivered.open("utility") as party:
        given = places(delivered, *(f"{title_of(serial)},10.0.0.1:4059" for serial in (1, 2)))
        outcomes = register_in_advance(party, given, CLIENT, 0)
        first = next(outcomes)
        assert isinstance(first, Told)
        assert [first.sent] == sent
        with pytest.raises(RefusedError, match="the second is refused"):
            next(outcomes)


def test_a_list_that_is_a_pipe_or_has_an_endless_line_is_refused(delivered: Realm) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as pipe, delivered.open("utility") as party:
        pipe.write(f"{title_of(1)},10.0.0.1:4059\n")
        with pytest.raises(InputError, match="is no file"):
            told(party, Path(f"/dev/fd/{reading}"))
        with pytest.raises(InputError, match="fault"):
            told(party, places(delivered, f"{title_of(1)},{'1' * 5000}"))
        assert {concentrator for concentrator, _, _ in where(party)} == {None}


def test_a_meter_that_moves_leaves_its_concentrator(delivered: Realm) -> None:
    with delivered.open("utility") as party:
        told(party, places(delivered), RELAY)
        told(party, places(delivered), CLIENT)
        assert {concentrator for concentrator, _, _ in where(party)} == {CLIENT}
        with party.store.read() as tx:
            purposes = [
                (item.peer, item.purpose, item.meters) for item in packages.listing(tx) if item.peer != "factory"
            ]
    assert sorted(purposes) == [
        (CLIENT, "distribution", 5),
        (RELAY, "distribution", 5),
        (RELAY, "distribution", 5),
    ]


def test_the_command_shows_each_package_and_each_meter_that_is_left(delivered: Realm) -> None:
    command = ("meter", "register", "--concentrator", CLIENT, "--in-advance", "--wait", "0")
    path = places(delivered, "1,10.0.0.1:4059", "99,10.0.0.9:4059")
    done = delivered.cli("utility", *command, "--list", str(path))
    assert done.returncode == 7, done.stderr
    unknown, sent = json.loads(done.stdout)
    assert (unknown["meters"], unknown["state"]) == ("99", "failed")
    assert (sent["meters"], sent["state"]) == (1, "waiting")
    assert "error: not all is done: there is no meter with title or serial number 99" in done.stderr
    with delivered.open("utility") as party:
        assert where(party)[0] == (CLIENT, "10.0.0.1:4059", False)

    one = delivered.cli("utility", *command, title_of(2))
    assert (one.returncode, one.stdout) == (2, "")
    assert "only a list is registered in advance" in one.stderr
