from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
StartMeter = Callable[..., int]


@pytest.fixture(scope="session")
def gurux_python() -> Path:
    """The interpreter that has gurux-dlms; it is GPLv2 and so lives in an environment and processes of its own."""
    default = HERE.parents[1] / ".venv-interop" / "bin" / "python"
    python = Path(os.environ.get("HSMKM_INTEROP_PYTHON", default))
    if not python.exists():
        pytest.skip(f"no peer environment at {python}: scripts/setup makes it, HSMKM_INTEROP_PYTHON names another")
    return python


@contextmanager
def running(python: Path, options: tuple[str, ...], program: str = "gurux_meter.py") -> Iterator[int]:
    command = [str(python), str(HERE / program), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            ready, _, port = process.stdout.readline().partition(" ")
            assert ready == "READY"
            yield int(port)
        finally:
            process.kill()


@pytest.fixture
def start_meter(gurux_python: Path) -> Iterator[StartMeter]:
    """Start an independent meter with the given options and give its port."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(running(gurux_python, options))


@pytest.fixture
def start_other_meter(gurux_python: Path) -> Iterator[StartMeter]:
    """Start the independent meter with the other AlgorithmID of the field."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(running(gurux_python, options, "gurux_other_algorithm.py"))
