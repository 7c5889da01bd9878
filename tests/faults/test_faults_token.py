"""A sample of the broken tokens and of the record of calls, as each change of the code is tried with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hsmkm.token import ckr
from tests.faults import harness_record, harness_token
from tests.faults.harness_token import Injection, Tally, break_call, operation_named
from tests.faults.shim import Plan, build
from tests.faults.theatre import Theatre
from tests.ports import held_port

pytestmark = pytest.mark.slow
SAMPLE, SEED = 8, 1


@pytest.fixture
def theatre(tmp_path: Path) -> Iterator[Theatre]:
    shim = build()
    with harness_token.through(shim), held_port() as port:
        yield Theatre(tmp_path, shim, port)


def test_operations_recover_from_a_broken_token_or_end_clean_and_five_broken_clients_are_found() -> None:
    outcome = harness_token.run(SAMPLE, SEED)
    assert outcome.violations == ()
    assert outcome.hits >= SAMPLE
    assert outcome.found == len(harness_token.CONTROLS)


@pytest.mark.parametrize(
    "plan",
    [
        Plan("C_Encrypt", 2, "fail", ckr.CODES["CKR_PIN_LOCKED"]),
        Plan("C_DecryptInit", 3, "lose", ckr.CODES["CKR_DEVICE_ERROR"]),
    ],
    ids=["out of step", "answer lost"],
)
def test_a_token_lost_in_an_association_is_what_is_told_and_another_process_may_speak_at_once(
    theatre: Theatre, plan: Plan
) -> None:
    tally = Tally()
    break_call(theatre, Injection(operation_named("read"), plan), tally)
    assert (tally.hits, tally.violations) == (1, [])


def test_no_call_of_any_party_breaks_a_rule_and_each_rule_finds_its_misuse() -> None:
    outcome = harness_record.run(SAMPLE, SEED)
    assert outcome.violations == ()
    assert outcome.hits > 1000
    assert outcome.found == len(harness_record.CONTROLS)
