"""Every command explains itself, and what is typed wrong ends with exit code 2."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from hsmkm.cli.app import app
from tests.command import Done
from tests.realm import HSMKM

ROOT = Path(__file__).resolve().parents[2]


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401 - click's
    """Walk the nouns and verbs."""
    yield path, command
    for name, below in sorted(getattr(command, "commands", {}).items()):
        yield from commands(below, (*path, name))


EVERY = dict(commands(get_command(app)))


def run(*arguments: str) -> Done:
    return subprocess.run([str(HSMKM), *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_noun_and_verb_explains_itself(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, [*path, "--help"])
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: hsmkm{''.join(f' {word}' for word in path)} [OPTIONS]") or not path
    assert str(ROOT) not in done.output
    assert str(Path.home()) not in done.output
    assert not re.search(r"TODO|FIXME|None\b", done.output)


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_and_parameter_has_a_description_that_is_a_sentence(path: tuple[str, ...]) -> None:
    command = EVERY[path]
    assert command.help
    assert command.help.strip()[0].isupper()
    assert command.help.strip().endswith(".")
    for parameter in command.params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"{' '.join(path)}: {parameter.name} has no description"
            assert parameter.help.rstrip().endswith("."), f"{' '.join(path)}: {parameter.name}: {parameter.help}"


def test_help_works_as_installed_and_without_a_home(tmp_path: Path) -> None:
    done = subprocess.run([str(HSMKM), "--help"], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for noun in get_command(app).commands:  # type: ignore[attr-defined]  # it is a group
        assert re.search(rf"^  {noun} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("meter", "nonsense"),
        ("meter", "provision"),
        ("meter", "provision", "order.csv"),
        ("--output", "yaml", "config", "check"),
        ("audit", "log", "--limit", "-1"),
        ("audit", "log", "--after", "first"),
        ("store", "check", "--colour"),
        ("package", "import", "one.p7m", "two.p7m"),
        ("meter",),
        (),
    ],
    ids=" ".join,
)
def test_a_usage_error_is_exit_code_2_and_says_how_it_goes(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2
    assert "Usage: " in done.output
    assert "Traceback" not in done.output


def test_a_usage_error_of_the_installed_command_is_exit_code_2() -> None:
    done = run("token", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'nonsense'" in done.stderr
