from __future__ import annotations

import pytest

from hsmkm.errors import InputError
from hsmkm.packages.receive import inspect_package
from hsmkm.steps.provision import provision
from hsmkm.store import key_sets, meters
from hsmkm.token.types import KeyRole
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
