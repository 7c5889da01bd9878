"""A small fleet, renewed as scripts/fleet-campaign renews a large one."""

from __future__ import annotations

import pytest

from scripts.fleet_campaign import Plan, renewed
from tests.realm import Realm

pytestmark = pytest.mark.slow


def test_each_meter_of_a_fleet_with_faults_ends_verified_or_listed(realm: Realm) -> None:
    found = renewed(realm, Plan(meters=60, fault=0.3, loss=0.01, reboot=0.005, back_off=0.1))
    assert found.held
    assert (found.meters, found.lost) == (60, 0)
    assert found.done > 50
    assert found.faults > 10
