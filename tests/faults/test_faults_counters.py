"""A sample of the counter harness, which scripts/faults runs with 1,000 kills."""

from __future__ import annotations

import pytest

from tests.faults import harness_counters

pytestmark = pytest.mark.slow


def test_no_iv_is_used_twice_by_workers_and_a_service_that_are_killed_at_random_moments() -> None:
    report = harness_counters.run(16, seed=1)
    assert report.violations == ()
    assert report.hits >= 16
    assert report.passed
