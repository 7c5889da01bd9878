"""How far a campaign is, shown on a terminal and elsewhere; and which meters are renewed together."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console
from rich.progress import Progress

from hsmkm.campaign import slices
from hsmkm.campaign.events import Claimed, Refused, Worked
from hsmkm.campaign.lanes import Failed
from hsmkm.campaign.plan import Wait
from hsmkm.cli.campaign_progress import Course
from hsmkm.errors import TransportError
from hsmkm.store import meters
from hsmkm.store.campaign import CampaignMeter, Standing
from tests.campaign.conftest import DONE, NAME, WAITING, terms
from tests.field import Field
from tests.realm import title_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)
COUNTS = dict.fromkeys(Standing, 0) | {WAITING: 8, DONE: 2}


def attempt(state: Standing) -> Worked:
    return Worked(NAME, title_of(1), state, "")


def test_a_bar_counts_what_is_settled(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(console=Console(file=io.StringIO(), force_terminal=True))
    shown = Course(NAME, COUNTS, 1, bar)
    for state in (DONE, Standing.FAILED, Standing.GAVE_UP):
        shown.take(attempt(state))
    (task,) = bar.tasks
    assert (task.completed, task.total) == (4, 10)
    assert "2 attempts failed" in task.fields["said"]
    assert capsys.readouterr().err == ""


def test_elsewhere_a_line_is_written_for_so_many_meters(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Course(NAME, COUNTS, 2)
    for _ in range(5):
        shown.take(attempt(DONE))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["settled"], line["of"]) for line in lines] == [(4, 10), (6, 10)]
    assert all(line["per_second"] > 0 for line in lines)


def test_the_same_waiting_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Course(NAME, COUNTS, 1)
    for seconds in range(3):
        shown.take(Wait(NOW + timedelta(seconds=seconds), "the rate allows no more"))
        shown.take(Claimed(NAME, 1, taken_over=False))
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["waits"] == "the rate allows no more"


def test_a_failure_that_goes_on_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Course(NAME, COUNTS, 1)
    for _ in range(3):
        shown.take(Failed(TransportError("the store does not answer")))
        shown.take(Refused(NAME, "this worker takes no slice", ("version: another",)))
    assert capsys.readouterr().err.splitlines() == [
        "a worker stopped: the store does not answer",
        f"{NAME}: this worker takes no slice; version: another",
    ]


def test_meters_whose_concentrator_takes_keys_are_renewed_together(field: Field) -> None:
    behind = {1: "concentrator", 2: "concentrator", 3: "other-concentrator", 4: None, 5: "concentrator"}
    rows = [CampaignMeter(bytes.fromhex(title_of(serial)), WAITING, 0, NOW, 1, "") for serial in behind]
    with field.realm.open("utility") as party:
        with party.store.begin("moved", "meters", {}) as tx:
            for row, name in zip(rows, behind.values(), strict=True):
                meters.update(tx, replace(meters.require(tx, row.system_title), concentrator=name))
        units = slices._units(party, terms(), rows)
    titles = [{meter.title for meter in unit} for unit in units]
    assert sorted(titles, key=len) == [{title_of(3)}, {title_of(4)}, {title_of(1), title_of(2), title_of(5)}]
