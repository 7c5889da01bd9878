from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.interop.station import Station, build_station
from tests.realm import Realm, copy_realm

HERE = Path(__file__).parent
StartMeter = Callable[..., int]


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


@pytest.fixture(scope="session")
def station_template(
    gurux_python: Path, realm_template: Realm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Station]:
    """A factory with one provisioned meter and one injected one, made once for this process."""
    realm = copy_realm(realm_template, tmp_path_factory.mktemp("station") / "realm")
    with ExitStack() as stack:
        yield build_station(realm, lambda *options: stack.enter_context(running(gurux_python, options)))


@pytest.fixture
def station(station_template: Station, start_meter: StartMeter, tmp_path: Path) -> Station:
    """A station of this test's own; its meters are not running."""
    shutil.copytree(station_template.folder, tmp_path / "realm")
    return Station(Realm(tmp_path / "realm"), start_meter)
