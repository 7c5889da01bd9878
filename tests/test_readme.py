"""README.md's commands, run in their order as they stand there, print what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import commands, readme

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_help_that_is_shown_is_the_help(tmp_path: Path) -> None:
    shown = [command for block in readme.blocks(TEXT) for command in block if command.text.endswith("--help")]
    assert shown
    for command, (printed, code) in zip(shown, readme.run(shown, tmp_path), strict=True):
        assert code == 0
        assert printed.output == command.output


def test_every_verb_that_is_used_exists() -> None:
    known = {path for path, _ in commands.leaves(commands.root())}
    used = [match for block in readme.blocks(TEXT) for command in block for match in readme.verbs(command.text)]
    assert len(used) > 40
    assert [words for words in used if words not in known and words[:1] not in known and words != ("--help",)] == []


@pytest.mark.slow
def test_the_walk_through_prints_what_is_shown(tmp_path: Path) -> None:
    """`python scripts/readme.py --write` shows anew what is printed."""
    shown = [command for block in readme.blocks(TEXT) for command in block]
    done = list(readme.run(shown, tmp_path))
    assert len(done) == len(shown), f"stopped after {shown[len(done) - 1].text}"
    told = [after.text == "echo $?" for after in shown[1:]] + [False]
    failed = [(one.text, one.output) for (one, code), expected in zip(done, told, strict=True) if code and not expected]
    assert failed == []
    for command, (printed, _) in zip(shown, done, strict=True):
        assert readme.comparable(printed.output) == readme.comparable(command.output), command.text
