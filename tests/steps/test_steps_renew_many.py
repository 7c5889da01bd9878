"""Many meters at once: each in a thread, none twice, and the work ends between two meters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import PartlyDoneError, TransportError
from hsmkm.simulator.behaviour import Fault
from hsmkm.steps.attest import check_store, verify_audit
from hsmkm.steps.communicate import read
from hsmkm.steps.renew import GLOBAL_KEYS
from hsmkm.steps.renew_many import renew_many
from hsmkm.store import counters, meters, renewals
from tests.field import ENERGY, key_states
from tests.realm import Realm, copy_realm, title_of
from tests.street import Street, open_street

if TYPE_CHECKING:
    from hsmkm.steps.party import Party

SERIALS = (1, 2, 3, 4, 5, 6)
TITLES = [title_of(serial) for serial in SERIALS]


@pytest.fixture
def street(delivered_template: Realm, tmp_path: Path) -> Iterator[Street]:
    with open_street(copy_realm(delivered_template, tmp_path / "realm"), "utility", SERIALS) as found:
        yield found


def renewed(party: Party) -> list[str]:
    with party.store.read() as tx:
        return sorted(item.system_title.hex().upper() for item in renewals.unfinished(tx))


def test_many_meters_are_renewed_by_several_threads_and_each_is_read_under_its_new_keys(street: Street) -> None:
    party = street.party
    before = {title: street.meters[title].state.keys.copy() for title in TITLES}
    outcomes = list(renew_many(party, TITLES, GLOBAL_KEYS, threads=4))
    assert {item.system_title: (item.state, item.error) for item in outcomes} == dict.fromkeys(TITLES, ("active", None))
    assert all(before[title] != street.meters[title].state.keys for title in TITLES)
    assert [read(party, title, (ENERGY,))[0].data.integer() for title in TITLES] == [123_456] * len(TITLES)
    assert list(verify_audit(party, ())) == list(check_store(party)) == []


def test_a_meter_that_fails_fails_alone(street: Street) -> None:
    party, silent, lying = street.party, TITLES[2], TITLES[4]
    with party.store.begin("moved", silent, {}) as tx:
        meters.update(tx, replace(meters.find(tx, silent), address="127.0.0.1:9"))
    street.fails_once(lying, Fault.LIE)
    outcomes = {item.system_title: item for item in renew_many(party, TITLES, GLOBAL_KEYS, threads=4)}
    assert {title for title, item in outcomes.items() if item.state != "active"} == {silent, lying}
    assert isinstance(outcomes[silent].error, TransportError)
    assert outcomes[lying].state == "unknown"
    assert renewed(party) == [lying]


def test_whoever_stops_early_stops_between_two_meters(street: Street) -> None:
    outcomes = renew_many(street.party, TITLES, GLOBAL_KEYS, threads=2)
    next(outcomes)
    outcomes.close()
    assert renewed(street.party) == []
    done = [serial for serial in SERIALS if len(key_states(street.party, serial)) > 1]
    assert 1 <= len(done) <= 2 + 2


def test_a_store_that_is_gone_ends_the_work_with_its_reason(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise RuntimeError("gone")

    monkeypatch.setattr(counters, "reserve", gone)
    with pytest.raises(RuntimeError, match="gone"):
        list(renew_many(street.party, TITLES, GLOBAL_KEYS, threads=4))


def test_a_meter_whose_concentrator_holds_keys_goes_by_way_of_its_receipts(street: Street) -> None:
    party = street.party
    with party.store.begin("placed", TITLES[0], {}) as tx:
        meters.update(tx, replace(meters.find(tx, TITLES[0]), concentrator="concentrator"))
    (outcome,) = renew_many(party, TITLES[:1], GLOBAL_KEYS, seconds=0)
    assert isinstance(outcome.error, PartlyDoneError)
    assert "has not taken package" in outcome.detail
