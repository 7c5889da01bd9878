"""A sample of the broken tokens and of the record of calls, as each change of the code is tried with."""

from __future__ import annotations

import pytest

from tests.faults import harness_record, harness_token

pytestmark = pytest.mark.slow
SAMPLE, SEED = 8, 1


def test_operations_recover_from_a_broken_token_or_end_clean_and_five_broken_clients_are_found() -> None:
    outcome = harness_token.run(SAMPLE, SEED)
    assert outcome.violations == ()
    assert outcome.hits >= SAMPLE
    assert outcome.found == len(harness_token.CONTROLS)


def test_no_call_of_any_party_breaks_a_rule_and_each_rule_finds_its_misuse() -> None:
    outcome = harness_record.run(SAMPLE, SEED)
    assert outcome.violations == ()
    assert outcome.hits > 1000
    assert outcome.found == len(harness_record.CONTROLS)
