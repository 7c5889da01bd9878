"""`hsmkm renew --urgent` in the small: what is asked for is renewed, resolved before where it is in doubt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from hsmkm.simulator.behaviour import Fault
from hsmkm.steps import group_members, group_renew
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.steps.urgent import renew_urgent
from hsmkm.store import meters
from hsmkm.store.groups import Renewal
from hsmkm.token.types import KeyRole
from tests.field import Field, key_states
from tests.street import ONE, OTHER, Street, open_street


@pytest.fixture
def street(field: Field) -> Iterator[Street]:
    with open_street(field.realm) as found:
        yield found


def test_all_that_waits_is_renewed_and_waits_no_more(street: Street) -> None:
    street.ask(ONE)
    street.ask(OTHER, KeyRole.GUEK)
    assert {(item.system_title, item.state) for item in renew_urgent(street.party)} == {
        (ONE, "active"),
        (OTHER, "active"),
    }
    assert street.waiting() == []
    assert renew_urgent(street.party) == []
    assert key_states(street.party, 1) == [(1, "deactivated"), (2, "active")]


def test_an_ordinary_renewal_settles_it_too(street: Street) -> None:
    street.ask(ONE)
    renew(street.party, [ONE], (KeyRole.GUEK, KeyRole.GAK))
    assert street.waiting() == [ONE]
    renew(street.party, [ONE], (KeyRole.GBEK,))
    assert street.waiting() == []


def test_a_meter_in_doubt_is_resolved_before(street: Street) -> None:
    street.fails_once(ONE, Fault.DROP_AFTER)
    (lost,) = renew(street.party, [ONE], GLOBAL_KEYS)
    assert lost.state == "unknown"
    street.ask(ONE)
    assert [item.state for item in renew_urgent(street.party)] == ["active"]
    assert street.waiting() == []
    assert key_states(street.party, 1)[-1] == (3, "active")


def test_one_that_fails_goes_on_waiting_and_the_others_are_renewed(street: Street) -> None:
    street.ask(ONE)
    street.ask(OTHER)
    with street.party.store.begin("moved", ONE, {}) as tx:
        meters.update(tx, replace(meters.find(tx, ONE), address="127.0.0.1:1"))
    outcomes = {item.system_title: item.error is None for item in renew_urgent(street.party)}
    assert outcomes == {ONE: False, OTHER: True}
    assert street.waiting() == [ONE]


def test_a_group_that_a_compromised_meter_left_is_renewed(street: Street) -> None:
    group_members.create(street.party, "north", 0)
    group_members.add(street.party, "north", [ONE, OTHER])
    group_renew.renew(street.party, "north")
    group_members.remove(street.party, "north", [ONE], compromised=True)
    assert street.waiting() == ["north"]
    street.ask(OTHER)
    assert {(item.system_title, item.state) for item in renew_urgent(street.party)} == {(OTHER, "active")}
    assert street.waiting() == []
    seen = group_members.overview(street.party, "north")
    assert seen.group.renewal is Renewal.NONE
    assert seen.current is not None
    assert seen.current.generation == 2
