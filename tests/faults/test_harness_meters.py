from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import harness_meters, harness_relay, harness_virtual
from tests.realm import Realm

pytestmark = pytest.mark.slow

HARNESSES = {"meters": harness_meters.run, "relay": harness_relay.run, "virtual": harness_virtual.run}


@pytest.mark.parametrize(("name", "sample"), [("meters", 18), ("relay", 8), ("virtual", 6)])
def test_meters_that_fail_or_are_lied_about_end_with_the_keys_the_store_calls_active(
    realm: Realm,
    gurux_python: Path,  # noqa: ARG001 - it skips where there is no peer
    name: str,
    sample: int,
) -> None:
    outcome = HARNESSES[name](sample, 1, realm)
    assert not outcome.violations
    assert outcome.passed
