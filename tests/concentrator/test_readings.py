"""The file of readings is bounded, whole lines survive, and whose turn it is at a meter is never two's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hsmkm.concentrator.reader import BUSY, PASSES, Reader, ReaderSettings, Round
from hsmkm.concentrator.readings import Line, ReadingsFile
from hsmkm.concentrator.turns import Turns
from hsmkm.errors import IntegrityError, TransportError

ONE, TWO, THREE = (bytes([number]) * 8 for number in (1, 2, 3))


def test_a_full_file_is_renamed_and_the_oldest_goes(tmp_path: Path) -> None:
    file = ReadingsFile(tmp_path / "in" / "readings.jsonl", octets=30, files=2)
    for number in range(8):
        file.write([{"meter": "A" * 20, "number": number}])
    found = {
        path.name: [json.loads(line)["number"] for line in path.read_text().splitlines()]
        for path in sorted((tmp_path / "in").iterdir())
    }
    assert found == {"readings.jsonl": [7], "readings.jsonl.1": [6], "readings.jsonl.2": [5]}


def test_a_file_without_older_ones_begins_anew(tmp_path: Path) -> None:
    file = ReadingsFile(tmp_path / "readings.jsonl", octets=1, files=0)
    for number in range(3):
        file.write([{"number": number}])
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"number":2}\n']


def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "readings.jsonl"
    path.write_text('{"number":1}\n{"numb')
    ReadingsFile(path, octets=1000, files=1).write([{"number": 2}])
    assert path.read_text().splitlines() == ['{"number":1}', '{"numb', '{"number":2}']


def test_the_head_end_and_the_reader_take_turns_at_a_meter() -> None:
    turns = Turns()
    assert turns.begin_relaying(ONE)
    assert turns.begin_relaying(ONE)
    assert not turns.begin_reading(ONE)
    assert turns.begin_reading(TWO)
    assert not turns.begin_relaying(TWO)
    turns.end_relaying(ONE)
    assert not turns.begin_reading(ONE)
    turns.end_relaying(ONE)
    turns.end_reading(TWO)
    assert turns.begin_reading(ONE)
    assert turns.begin_relaying(TWO)


def round_of(answers: dict[bytes, list[list[Line] | Exception]], turns: Turns) -> tuple[list[Line], Round, list[bytes]]:
    """Let a reader go once through meters with these answers, the last of which it gives again and again."""
    written: list[Line] = []
    ended: list[Round] = []
    asked: list[bytes] = []

    def measure(title: bytes) -> list[Line]:
        asked.append(title)
        answer = answers[title].pop(0) if len(answers[title]) > 1 else answers[title][0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def done(told: Round) -> None:
        ended.append(told)
        reader.stop()

    settings = ReaderSettings(lambda: list(answers), measure, written.extend, done, lambda: None, 0.01)
    reader = Reader(settings, turns)
    reader.run()
    return written, ended[0], asked


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsmkm.concentrator.reader.PAUSE_SECONDS", 0.01)


@pytest.mark.usefixtures("quick")
def test_a_meter_that_refuses_is_tried_again_behind_the_others_and_one_that_is_away_in_the_next_round() -> None:
    line: Line = {"value": 1}
    refused = IntegrityError("the tag does not fit")
    answers: dict[bytes, list[list[Line] | Exception]] = {
        ONE: [refused, [line]],
        TWO: [TransportError("cannot be reached")],
        THREE: [[line]],
    }
    written, told, asked = round_of(answers, Turns())
    assert asked == [ONE, TWO, THREE, ONE]
    assert told.meters == len(answers)
    assert told.unread == {TWO.hex().upper(): "cannot be reached"}
    assert [item.get("value", item.get("error")) for item in written] == [1, 1, "cannot be reached"]


@pytest.mark.usefixtures("quick")
def test_a_meter_is_not_read_while_the_head_end_speaks_with_it() -> None:
    turns = Turns()
    turns.begin_relaying(ONE)
    _, told, asked = round_of({ONE: [[{"value": 1}]], TWO: [IntegrityError("no")]}, turns)
    assert told.unread == {ONE.hex().upper(): BUSY, TWO.hex().upper(): "no"}
    assert asked == [TWO] * PASSES
    turns.end_relaying(ONE)
    assert turns.begin_reading(ONE)
