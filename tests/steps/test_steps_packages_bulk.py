"""Packages that workers wrap and take are those that a party makes alone, and nothing wrong with one gets past them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.packages.content import PackageContent, WrappedKey
from hsmkm.packages.receive import PackageRefusedError, inspect_package
from hsmkm.steps.exporting import export
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive
from hsmkm.steps.results import Sent
from hsmkm.store import holders, key_sets
from hsmkm.store.check import check
from hsmkm.store.key_set import KeySet
from hsmkm.token.types import KeyRole
from tests.database import query
from tests.forge import certified, everything, forge, signed
from tests.realm import Realm, title_of

SERIALS = range(1, 9)


@pytest.fixture(autouse=True)
def in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, and three meters to a batch."""
    monkeypatch.setenv("HSMKM_WORKERS_PROCESSES", "2")
    monkeypatch.setenv("HSMKM_WORKERS_BATCH", "3")


def delivered(party: Party, realm: Realm) -> Sent:
    order = provision(party, realm.order(*SERIALS), "line").order
    return export(party, "delivery", "utility", (), order)


def sets_of(party: Party) -> list[KeySet]:
    with party.store.read() as tx:
        found = [key_sets.newest(tx, bytes.fromhex(title_of(serial)), 0, 1) for serial in SERIALS]
        assert list(check(tx)) == []
    return [key_set for key_set in found if key_set is not None]


def test_what_workers_wrap_other_workers_take(realm: Realm) -> None:
    with realm.open("factory") as factory:
        sent = delivered(factory, realm)
        made = sets_of(factory)
        with factory.store.read() as tx:
            given = holders.of_package(tx, sent.id)
    data = sent.path.read_bytes()
    with realm.open("utility") as utility:
        receive(utility, data)
        taken = sets_of(utility)
        with utility.store.read() as tx:
            got = holders.of_package(tx, sent.id)
    entries = inspect_package(data).content.meters
    assert sent.meters == len(entries) == len(SERIALS)
    assert [entry.serial for entry in entries] == [str(serial) for serial in SERIALS]
    identities = [[(key.role, key.identity) for key in key_set.keys] for key_set in made]
    assert identities == [[(key.role, key.identity) for key in key_set.keys] for key_set in taken]
    assert {(one.ref, one.identity, one.party) for one in given} == {
        (key_set.ref, key.identity, "utility") for key_set in made for key in key_set.keys
    }
    assert {(one.ref, one.identity, one.party) for one in got} == {
        (key_set.ref, key.identity, "factory") for key_set in made for key in key_set.keys
    }


@pytest.mark.parametrize("serials", [(2,), tuple(SERIALS)])
def test_an_altered_key_set_is_named_and_nothing_leaves(realm: Realm, serials: tuple[int, ...]) -> None:
    url, seventh = realm.url("factory"), bytes.fromhex(title_of(2))
    with realm.open("factory") as party:
        provision(party, realm.order(*SERIALS), "line")
        ((keys,),) = query(url, "SELECT keys FROM key_sets WHERE system_title = ?", seventh)
        query(url, "UPDATE key_sets SET keys = ? WHERE system_title = ?", keys[:-1] + bytes([keys[-1] ^ 1]), seventh)
        for file in party.home.glob("packages/*"):
            file.unlink()
        before = everything(realm, "factory")
        with pytest.raises(IntegrityError, match=f"^key_sets {title_of(2)}/0/1/1 does not fit its mac$"):
            export(party, "delivery", "utility", tuple(map(title_of, serials)), None)
        assert everything(realm, "factory") == before
        assert not list(party.home.glob("packages/*"))


def test_every_key_that_does_not_unwrap_is_named_and_nothing_is_taken(realm: Realm) -> None:
    with realm.open("factory") as factory:
        package = forge(factory, certified(realm, "utility"), *map(title_of, SERIALS))
        content = inspect_package(package.data).content
        meters = list(content.meters)
        meters[7] = replace(meters[7], keys=altered(meters[7].keys, KeyRole.GUEK, 1))
        meters[1] = replace(meters[1], keys=altered(altered(meters[1].keys, KeyRole.MASTER, 2), KeyRole.GAK, 3))
        data = signed(factory, content.header, content.recipient_info, tuple(meters)).data
    before = everything(realm, "utility")
    with realm.open("utility") as utility, pytest.raises(PackageRefusedError) as caught:
        receive(utility, data)
    places = [f"meter {title_of(SERIALS[number])} generation 1" for number in (1, 7)]
    assert caught.value.reasons == (
        f"{places[0]}: gak does not unwrap",
        f"{places[0]}: master does not unwrap",
        f"{places[1]}: guek does not unwrap",
    )
    assert everything(realm, "utility") == before


def altered(keys: tuple[WrappedKey, ...], role: KeyRole, octet: int) -> tuple[WrappedKey, ...]:
    return tuple(replace(key, wrapped=bytes([octet]) * 24) if key.role is role else key for key in keys)


def test_a_meter_that_is_named_twice_is_refused(realm: Realm) -> None:
    with realm.open("factory") as party:
        provision(party, realm.order(*SERIALS), "line")
        with pytest.raises(InputError) as caught:
            export(party, "delivery", "utility", (title_of(1), *map(title_of, SERIALS)), None)
    assert any("occurs twice" in fault.text for fault in caught.value.faults)


def test_more_key_sets_than_a_package_holds_are_refused(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsmkm.steps.exporting.MAX_METERS", 7)
    with realm.open("factory") as party:
        order = provision(party, realm.order(*SERIALS), "line").order
        with pytest.raises(InputError, match="a package has at most 7 key sets, and more are selected"):
            export(party, "delivery", "utility", (), order)


def test_an_order_of_more_meters_than_a_package_holds_is_refused_before_it_is_read_whole(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsmkm.steps.exporting.MAX_METERS", 3)
    monkeypatch.setattr("hsmkm.store.meters.PAGE", 4)
    with realm.open("factory") as party:
        order = provision(party, realm.order(*SERIALS), "line").order
        with pytest.raises(InputError, match="has more meters") as caught:
            export(party, "delivery", "utility", (), order)
    assert "--list FILE" in caught.value.hint


def test_a_package_of_an_injection_is_made_again(realm: Realm) -> None:
    with realm.open("factory") as party:
        provision(party, realm.order(*SERIALS), "line")
        sent = export(party, "injection", "line", (title_of(1), title_of(2)), None)
        query(realm.url("factory"), "DELETE FROM key_sets WHERE system_title = ?", bytes.fromhex(title_of(1)))
        with pytest.raises(RefusedError, match="not every meter can be exported"):
            export(party, "injection", "line", (title_of(1),), None)
    content: PackageContent = inspect_package(sent.path.read_bytes()).content
    assert [entry.serial for entry in content.meters] == ["1", "2"]
