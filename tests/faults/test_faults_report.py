from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults import report
from tests.faults.report import Report

GOOD = Report("crash", 3, (), 2)


def test_a_report_says_hits_violations_and_what_the_negative_control_found() -> None:
    assert GOOD.line() == "crash: 3 hits, 0 violations, negative control: 2 found"


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(replace(GOOD, violations=("provision: two meters with one serial number",)), id="violation"),
        pytest.param(replace(GOOD, hits=0), id="nothing was hit"),
        pytest.param(replace(GOOD, found=0), id="blind to its negative control"),
    ],
)
def test_a_harness_passes_only_if_it_hit_and_can_see_and_saw_nothing(outcome: Report) -> None:
    assert GOOD.passed
    assert not outcome.passed


def test_every_harness_has_a_run() -> None:
    for name in report.names():
        assert callable(report.load(name).run)
