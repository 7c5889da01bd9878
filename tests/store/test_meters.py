from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import RefusedError
from hsmkm.store import meters, orders, sums
from hsmkm.store.orders import Order

if TYPE_CHECKING:
    from hsmkm.store.store import Store
    from tests.store.conftest import Factory, SoftwareAuthenticator


def test_a_meter_is_found_by_title_and_by_serial_number(store: Store, factory: Factory) -> None:
    with store.begin("meter add", "x", {}) as tx:
        meters.add_many(tx, [factory.meter(number) for number in (1, 2)])
        meters.add(tx, factory.meter(3, serial="00000002"))
        assert meters.find(tx, "5554490000000001") == factory.meter(1)
        assert meters.find(tx, "00000001") == factory.meter(1)
        assert meters.require(tx, factory.meter(2).system_title).serial == "00000002"
        with pytest.raises(RefusedError, match="more than one"):
            meters.find(tx, "00000002")
        for missing in ("5554490000000009", "nothing"):
            with pytest.raises(RefusedError, match="no meter"):
                meters.find(tx, missing)
        with pytest.raises(RefusedError, match="no meter"):
            meters.require(tx, bytes(8))


def test_meters_are_listed_in_pages(store: Store, factory: Factory) -> None:
    made = [factory.meter(number) for number in range(1, 8)]
    with store.begin("meter add", "x", {}) as tx:
        assert meters.add_many(tx, made) == 7
        first = meters.listing(tx, limit=4)
        second = meters.listing(tx, limit=4, after=first[-1].system_title)
    assert first + second == made


def test_meters_are_listed_by_order_and_concentrator(store: Store, factory: Factory) -> None:
    with store.begin("meter add", "x", {}) as tx:
        orders.add(tx, Order("ab" * 32, "a.csv", 1))
        meters.add(tx, factory.meter(1, order="ab" * 32))
        meters.add(tx, factory.meter(2, concentrator="dc-1"))
        assert [meter.serial for meter in meters.listing(tx, order="ab" * 32)] == ["00000001"]
        assert [meter.serial for meter in meters.listing(tx, concentrator="dc-1")] == ["00000002"]


def test_a_change_gives_the_row_a_mac_of_its_own(
    store: Store, factory: Factory, authenticator: SoftwareAuthenticator
) -> None:
    meter = factory.meter()
    registered = datetime(2026, 4, 1, tzinfo=UTC)
    changed = replace(meter, address="10.0.0.1:4059", concentrator="dc-1", registered=registered, state="registered")
    with store.begin("meter register", "x", {}) as tx:
        meters.add(tx, meter)
        of_model = authenticator.made
        meters.update(tx, changed)
        assert authenticator.made == of_model + 1
        meters.update(tx, changed)
        assert meters.get(tx, meter.system_title) == changed


def test_many_meters_change_as_one_does(store: Store, factory: Factory, authenticator: SoftwareAuthenticator) -> None:
    made = [factory.meter(1), factory.meter(2), factory.meter(3, concentrator="dc-1")]
    changed = [replace(meter, address=f"10.0.0.{n}:4059", concentrator="dc-2") for n, meter in enumerate(made)]
    with store.begin("meter add", "x", {}) as tx:
        meters.add_many(tx, made[:2])
        meters.add(tx, made[2])
        before = authenticator.made
        meters.update_many(tx, changed[::-1])
        assert authenticator.made == before + 3
        meters.update_many(tx, [])
    with store.read() as tx:
        assert meters.listing(tx) == changed
        assert [row["revision"] for row in meters.rows(tx)] == [1, 1, 2]
        assert list(meters.faults(tx)) == []
        said = tx.state()
        assert said is not None
        assert list(sums.differences(tx.connection, said.sums)) == []
    with store.begin("meter change", "x", {}) as tx:
        with pytest.raises(RefusedError, match="never change"):
            meters.update_many(tx, [replace(changed[0], serial="9")])
        with pytest.raises(RefusedError, match="no meter"):
            meters.update_many(tx, [changed[0], factory.meter(4)])


def test_the_identity_of_a_meter_never_changes(store: Store, factory: Factory) -> None:
    meter = factory.meter()
    with store.begin("x", "y", {}) as tx:
        meters.add(tx, meter)
        for changed in (replace(meter, serial="9"), replace(meter, model="uti-2"), replace(meter, suite=1)):
            with pytest.raises(RefusedError, match="never change"):
                meters.update(tx, changed)
        with pytest.raises(RefusedError, match="no meter"):
            meters.update(tx, factory.meter(2))


def test_a_meter_is_added_once_and_well_formed(store: Store, factory: Factory) -> None:
    with store.begin("x", "y", {}) as tx:
        meters.add(tx, factory.meter(1))
        meters.add(tx, factory.meter(2), own_mac=True)
        for meter in (factory.meter(1), factory.meter(2, address="h:1")):
            with pytest.raises(RefusedError, match="already"):
                meters.add(tx, meter)
        for changes in ({"system_title": b"short"}, {"suite": 3}, {"serial": ""}, {"model": ""}):
            with pytest.raises(RefusedError, match="well formed"):
                meters.add(tx, factory.meter(3, **changes))
        with pytest.raises(ValueError, match="bulk"):
            meters.add_many(tx, [factory.meter(4, address="h:1")])


def test_an_order_file_is_taken_once(store: Store) -> None:
    order = Order("ab" * 32, "a.csv", 20)
    with store.begin("x", "y", {}) as tx:
        orders.add(tx, order)
        with pytest.raises(RefusedError, match="taken before"):
            orders.add(tx, replace(order, name="copy.csv"))
        orders.set_state(tx, order.id, orders.DONE)
        [found] = orders.listing(tx)
        with pytest.raises(RefusedError, match="no order"):
            orders.set_state(tx, "cd" * 32, orders.DONE)
    assert (found.name, found.rows, found.state) == ("a.csv", 20, "done")
