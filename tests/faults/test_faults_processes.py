"""A sample of the kills of commands, service, concentrators and their workers, which scripts/faults makes all."""

from __future__ import annotations

import pytest

from tests.faults import harness_processes


@pytest.mark.slow
def test_processes_that_are_killed_at_work_are_started_again_and_the_command_goes_through() -> None:
    report = harness_processes.run(2, seed=1)
    assert report.violations == ()
    assert report.found
