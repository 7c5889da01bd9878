from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hsmkm.config import load_model
from hsmkm.errors import InputError
from hsmkm.steps.order import ProductionOrder, read_order
from hsmkm.steps.provision import provision
from hsmkm.steps.waiting import chunks_of, waiting_of
from tests.memory import peak_of, read_through
from tests.realm import Realm


def order_at(path: Path) -> ProductionOrder:
    return read_order(path, load_model)


def test_the_meters_that_an_order_has_left_are_divided_into_packages(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsmkm.steps.waiting.MAX_METERS", 2)
    path = realm.order(1, 2, 3, 4, 5, 6, 7)
    with realm.open("factory") as party:
        part = order_at(realm.order(2, 3, name="part.csv"))
        provision(party, realm.folder / "part.csv", "line")
        whole = replace(order_at(path), digest=part.digest)
        waiting = waiting_of(party, whole)
    assert len(waiting) == 5
    assert [[item.serial for item in chunk] for chunk in chunks_of(waiting)] == [["1", "4"], ["5", "6"], ["7"]]


def test_an_order_that_is_wrong_in_every_line_is_refused_with_its_first_faults(realm: Realm) -> None:
    path = realm.folder / "foreign.csv"
    path.write_text("flag,serial,model,suite\n" + "".join(f"XYZ,{number},virtual,0\n" for number in range(1200)))
    model = replace(load_model("virtual"), flags=("XYZ",))
    with realm.open("factory") as party, pytest.raises(InputError, match=r"has 1200 fault\(s\), the first 1000") as no:
        waiting_of(party, read_order(path, lambda _: model))
    assert len(no.value.faults) == 1000


def test_some_octets_a_meter_are_held_of_an_order_under_way(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsmkm.steps.waiting.MAX_METERS", 1000)
    orders = [order_at(realm.order(*range(count), name=f"{count}.csv")) for count in (2_000, 10_000)]
    with realm.open("factory") as party:
        waiting_of(party, orders[0])
        looked_up = [peak_of(lambda: waiting_of(party, order)) for order in orders]  # noqa: B023 - called at once
        left = [waiting_of(party, order) for order in orders]
        divided = [peak_of(lambda: read_through(chunks_of(waiting))) for waiting in left]  # noqa: B023 - called at once
    assert (looked_up[1] - looked_up[0]) / 8_000 < 16
    assert (divided[1] - divided[0]) / 8_000 < 16
