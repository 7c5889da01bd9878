from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from hsmkm.errors import InputError, IntegrityError, TokenUnreachableError
from hsmkm.packages.receive import inspect_package
from hsmkm.packages.transport import open_package_key
from hsmkm.steps.births import Made, make_key_sets, new_identities
from hsmkm.steps.certify import own_chain
from hsmkm.steps.hands import Hand
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.provision import provision
from hsmkm.store import holders, key_sets, meters
from hsmkm.store.check import check
from hsmkm.store.key_set_bulk import Form
from hsmkm.token.types import KeyRole, Sealed, Use
from hsmkm.token.workers import Worker
from tests.realm import Realm, title_of


def test_an_order_makes_key_sets_and_one_injection_package(realm: Realm) -> None:
    with realm.open("factory") as party:
        done = provision(party, realm.order(1, 2, 3), "line")
        with party.store.read() as tx:
            found = key_sets.newest(tx, bytes.fromhex(title_of(2)), 0, 1)
    content = inspect_package(done.packages[0].read_bytes()).content
    assert found is not None
    assert {key.role for key in found.keys} == set(KeyRole)
    assert [entry.serial for entry in content.meters] == ["1", "2", "3"]
    assert content.header.purpose.value == "injection"


def test_an_order_given_again_does_nothing(realm: Realm) -> None:
    order = realm.order(1, 2)
    with realm.open("factory") as party:
        provision(party, order, "line")
        again = provision(party, order, "line")
    assert again.already
    assert len(list((realm.home("factory") / "packages").iterdir())) == 1


def test_a_meter_of_another_order_is_refused_with_its_line_and_nothing_is_made(realm: Realm) -> None:
    with realm.open("factory") as party:
        provision(party, realm.order(1), "line")
        with pytest.raises(InputError) as caught:
            provision(party, realm.order(5, 1, name="second.csv"), "line")
        with party.store.read() as tx:
            assert meters.get(tx, bytes.fromhex(title_of(5))) is None
    assert [str(fault) for fault in caught.value.faults] == [
        f"second.csv:3:2: {title_of(1)} was provisioned by another order"
    ]


@pytest.fixture
def in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, and three meters to a batch."""
    monkeypatch.setenv("HSMKM_WORKERS_PROCESSES", "2")
    monkeypatch.setenv("HSMKM_WORKERS_BATCH", "3")


@pytest.mark.usefixtures("in_small_batches")
def test_workers_make_what_the_party_would_make_itself(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsmkm.steps.waiting.MAX_METERS", 5)
    with realm.open("factory") as party:
        done = provision(party, realm.order(*range(1, 13)), "line")
        with party.store.read() as tx:
            sets = [key_sets.newest(tx, bytes.fromhex(title_of(serial)), 0, 1) for serial in range(1, 13)]
            held = [len(holders.for_meter(tx, bytes.fromhex(title_of(serial)))) for serial in range(1, 13)]
            assert list(check(tx)) == []
    contents = [inspect_package(path.read_bytes()).content for path in done.packages]
    assert [[entry.serial for entry in content.meters] for content in contents] == [
        ["1", "2", "3", "4", "5"],
        ["6", "7", "8", "9", "10"],
        ["11", "12"],
    ]
    assert [content.header.sequence for content in contents] == [1, 2, 3]
    assert held == [4] * 12
    found = {key.identity: key for key_set in sets if key_set is not None for key in key_set.keys}
    assert len(found) == len({key.wrapped for key in found.values()}) == 48
    given = {key.identity for content in contents for entry in content.meters for key in entry.keys}
    assert given == set(found)


@pytest.mark.usefixtures("in_small_batches")
def test_what_workers_wrap_is_what_the_meter_and_the_line_unwrap(realm: Realm) -> None:
    with realm.open("factory") as party:
        content = inspect_package(provision(party, realm.order(1, 2, 3, 4), "line").packages[0].read_bytes()).content
        for entry in content.meters:
            with party.store.read() as tx:
                key_set = key_sets.newest(tx, entry.system_title, 0, 1)
            assert key_set is not None
            stored = {key.role: Sealed(key_set.storage_key, key.wrapped) for key in key_set.keys}
            with party.vault.open(KeyRole.MASTER, stored[KeyRole.MASTER], 0, Use.IN_USE) as master:
                for key in entry.keys:
                    if key.role is not KeyRole.MASTER:
                        with party.vault.open(key.role, stored[key.role], 0, Use.TRANSPORT) as travelling:
                            assert party.vault.wrap(master, travelling) == key.wrapped
    with realm.open("line") as party:
        leaf = own_chain(party, "key-agreement")[0]
        info, ukm = content.recipient_info, content.header.ukm()
        with open_package_key(party.vault, "key-agreement", leaf, info, ukm) as package_key:
            for entry in content.meters:
                (wrapped,) = (key.wrapped for key in entry.keys if key.role is KeyRole.MASTER)
                party.vault.unwrap(package_key, wrapped, KeyRole.MASTER, 0).destroy()


@pytest.mark.usefixtures("in_small_batches")
def test_a_token_that_makes_a_key_twice_is_refused(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsmkm.steps.provision.make_key_sets", make_twice)
    order = realm.order(*range(1, 8))
    with realm.open("factory") as party:
        with pytest.raises(IntegrityError, match="made one key twice"):
            provision(party, order, "line")
        with party.store.read() as tx:
            assert meters.get(tx, bytes.fromhex(title_of(1))) is None
    assert list((realm.home("factory") / "packages").iterdir()) == []


def make_twice(hand: Hand, lent: Sealed, forms: tuple[Form, ...], given: list[tuple[bytes, str]]) -> tuple[Made, ...]:
    """Make the keys of a batch, and give its last meter those of the first."""
    (made,) = make_key_sets(hand, lent, forms, given)
    return (replace(made, sets=(*made.sets[:-1], made.sets[0])),)


def provision_when_told(party: Party, order: Path) -> None:
    provision(party, order, "line")


@pytest.mark.usefixtures("in_small_batches")
def test_a_party_that_is_killed_takes_its_workers_with_it_and_goes_on_where_it_stopped(realm: Realm) -> None:
    order = realm.order(*range(1, 61))
    with Worker(open_party, realm.home("factory"), "tester") as worker, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(worker.call, provision_when_told, order)
        owner = worker._process.pid
        hands = wait_for(lambda: children_of(owner), 2)
        worker.abandon()
        with pytest.raises(TokenUnreachableError):
            under_way.result()
    wait_for(lambda: [one for one in hands if not Path(f"/proc/{one}").exists()], 2)
    with realm.open("factory") as party:
        provision(party, order, "line")
        with party.store.read() as tx:
            assert len(meters.listing(tx)) == 60
            assert list(check(tx)) == []


def children_of(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_for(found: Callable[[], list[int]], count: int) -> list[int]:
    deadline = time.monotonic() + 60
    while len(found()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found()


def test_identities_rise_with_the_moment_so_that_rows_of_one_batch_lie_side_by_side() -> None:
    before = time.time_ns() // 1_000_000
    made = new_identities(1000)
    after = time.time_ns() // 1_000_000
    each = [made[at : at + 16] for at in range(0, len(made), 16)]
    assert len({identity[6:] for identity in each}) == 1000
    assert {before <= int.from_bytes(identity[:6]) <= after for identity in each} == {True}
