"""What a concentrator's file says of it, and whether the process that wrote it is the one that runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from hsmkm.concentrator.health import Health, findings, load


def told(home: Path) -> dict[str, object]:
    Health(home, 5.0, None).fetched(1, "")
    return load(home)


def states(found: dict[str, object]) -> dict[str, bool]:
    return {item.check: item.ok for item in findings(found, datetime.now(UTC))}


def test_a_concentrator_that_runs_and_hears_from_its_aim_is_well(tmp_path: Path) -> None:
    assert states(told(tmp_path)) == {"process": True, "fetch": True}


def test_another_process_with_the_number_of_one_that_ended_is_not_taken_for_it(tmp_path: Path) -> None:
    found = told(tmp_path)
    place, _, started = str(found["process"]).rpartition(":")
    assert not states(found | {"process": f"{place}:{int(started) - 1}"})["process"]
    assert not states(found | {"process": 1})["process"]
