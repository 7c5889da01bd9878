"""A sample of the simulated campaigns, which scripts/faults runs with 10,000 seeds."""

from __future__ import annotations

import pytest

from tests.faults import harness_simulation
from tests.faults.simulation import Template, runs_on


def test_a_seed_always_gives_the_same_run() -> None:
    with harness_simulation.folder() as place:
        template = Template.make(place)
        first, again, other = (runs_on(template, place, seed) for seed in (3, 3, 4))
    assert (first.trace, first.befell, first.standing) == (again.trace, again.befell, again.standing)
    assert first.trace != other.trace


@pytest.mark.slow
def test_in_no_simulated_campaign_a_key_is_lost_or_an_iv_used_twice() -> None:
    report = harness_simulation.run(200, seed=1)
    assert report.violations == ()
    assert report.hits > 200
    assert report.passed
