from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import harness_meters
from tests.realm import Realm

pytestmark = pytest.mark.slow


def test_a_sample_of_failing_meters_ends_with_the_keys_the_store_calls_active(
    realm: Realm,
    gurux_python: Path,  # noqa: ARG001 - it skips where there is no peer
) -> None:
    outcome = harness_meters.run(24, 1, realm)
    assert not outcome.violations
    assert outcome.passed
