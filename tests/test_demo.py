"""The demo, as a user runs it: one line for each step, everything kept where it says, and nothing left running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import demo_lab

ROOT = Path(__file__).resolve().parents[1]
DEMO = (sys.executable, str(ROOT / "scripts" / "demo.py"))
SECONDS = 300


def run(*options: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(home)}
    command = [*DEMO, *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False)


def shape(lines: str) -> list[str]:
    """Leave out numbers, sizes and identifiers."""
    return [re.sub(r"\b(?:[0-9a-f]{8}|[0-9a-fA-F.,]*\d[0-9a-fA-F.,]*)\b", "#", line) for line in lines.splitlines()]


@pytest.mark.slow
def test_seven_steps_are_told_as_readme_shows_them_and_everything_is_kept(tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    done = run("--keep", str(keep), home=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[:6] for line in lines] == [f"{number} of 7" for number in (1, 2, 3, 4, 5, 6, 7, 7)]
    assert lines[-1] == "7 of 7 steps"
    shown = re.search(r"\$ scripts/demo\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert shown
    assert shape(done.stdout) == shape(shown[1])
    assert {"authority", "factory", "line", "utility", "concentrator", "pki"} <= {path.name for path in keep.iterdir()}
    assert (keep / "pki" / "root.pem").is_file()
    purposes = {path.stem for path in keep.glob("*/packages/*.p7m")}
    assert {path.stem for path in (keep / "packages").glob("*.p7m")} == purposes
    assert {path.stem for path in (keep / "receipts").glob("*.p7m")} <= purposes
    assert len(purposes) - 1 == len(list((keep / "receipts").glob("*.p7m"))), "all but the injection are receipted"
    assert not list(keep.glob("initial-*.keys"))
    assert {path.stat().st_mode & 0o777 for path in (keep / "meters").iterdir()} == {0o600}
    assert sorted(suite for suite, _ in held(keep)) == [0, 1, 2], "without --suite the fleet is mixed"


def held(keep: Path) -> list[tuple[int, set[int]]]:
    """The suite of each meter in a kept folder, and the lengths of the keys that it holds."""
    states = [json.loads(path.read_text()) for path in (keep / "meters").iterdir()]
    return [(state["suite"], {len(value) // 2 for value in state["keys"].values()}) for state in states]


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "octets", "profile"), [(0, 16, "softhsm2"), (1, 16, "nss"), (2, 32, "softhsm2")])
@pytest.mark.usefixtures("nss_installed")
def test_each_suite_by_itself_goes_through_the_seven_steps(
    tmp_path: Path, suite: int, octets: int, profile: str
) -> None:
    keep = tmp_path / "kept"
    done = run("--suite", str(suite), "--profile", profile, "--meters", "1", "--keep", str(keep), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "7 of 7 steps"
    assert held(keep) == [(suite, {octets})]
    assert (keep / "factory" / "token" / "nss").is_dir() == (profile == "nss")


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = run("--keep", str(tmp_path), home=tmp_path)
    assert done.returncode == 2
    assert "is not an empty folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_suite_that_the_standard_does_not_have_is_refused(tmp_path: Path) -> None:
    done = run("--suite", "3", home=tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 3" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def sigint_default() -> Iterator[None]:
    """Have what a test starts end at SIGINT, which children keep ignored where a shell's `&` made us ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_default")
@pytest.mark.parametrize("number", demo_lab.ENDING)
def test_ctrl_c_waits_until_a_process_that_is_being_started_is_known(number: signal.Signals) -> None:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    known = []

    def start() -> None:
        with demo_lab.undisturbed():
            signal.raise_signal(number)
            known.append("a process")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert known == ["a process"]
    assert signal.signal(signal.SIGTERM, before) is signal.default_int_handler


@pytest.mark.usefixtures("sigint_default")
def test_ctrl_c_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert "parties, tokens and certificates" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert output == ""
    assert "interrupted" in errors
    assert not list(tmp_path.iterdir())
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == ""
