"""A crash of an orchestrating process tells nothing: no key and no PIN is in its core file or in its traceback.

Commands, the service and the concentrator are ended by SIGABRT in the midst of their work, with the PIN from a file and
from a command. Their workers, which hold PIN and keys, leave no core file at all.
"""

from __future__ import annotations

import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.proofs.dump import abort
from tests.proofs.held import Held, hold, listening, wait_held
from tests.proofs.openssl import open_package
from tests.proofs.peer import SlowMeter, add_pem_party, virtual_meters
from tests.proofs.search import Needles, key_secrets
from tests.realm import Realm, copy_realm

pytestmark = pytest.mark.slow

METERS = {"file": 601, "command": 602}
HOMES = ("factory", "utility", "concentrator")
LISTEN = {
    "HSMKM_SERVICE_LISTEN": "127.0.0.1:0",
    "HSMKM_CONCENTRATOR_LISTEN": "127.0.0.1:0",
    "HSMKM_CONCENTRATOR_POLL_SECONDS": "1",
    "HSMKM_DLMS_TIMEOUT_SECONDS": "180",
    "PYTHONFAULTHANDLER": "1",
}
SOURCES = {"file": "file:token/pin", "command": "command:cat {pin}"}
PROGRAM = "import sys; kept = sys.stdin.buffer.read(16); print('READY', flush=True); sys.stdin.read()"


@dataclass
class Crashes:
    """What was left by each process that was ended: its core file, what it said, its arguments and environment."""

    realm: Realm
    keys: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cores: dict[str, bytes] = field(default_factory=dict)
    said: dict[str, bytes] = field(default_factory=dict)
    commands: dict[str, bytes] = field(default_factory=dict)
    workers: dict[str, tuple[int, int]] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)

    def needles(self) -> Needles:
        pins = {f"pin of {name}": (self.realm.home(name) / "token" / "pin").read_bytes().strip() for name in HOMES}
        return Needles(key_secrets(self.keys) | pins)

    def end(self, name: str, held: Held, folder: Path) -> None:
        """Note what is true of a process that works, end its worker by SIGABRT, then itself."""
        for process in (held.process, *held.workers()):
            command = [Path(f"/proc/{process}/{part}").read_bytes() for part in ("cmdline", "environ")]
            self.commands[f"{name}, {process}"] = b"\n".join(command)
        for worker in held.workers():
            self.workers[name] = resource.prlimit(worker, resource.RLIMIT_CORE)
        self.cores[name] = abort(held.process, folder)
        self.left[name] = [path.name for path in folder.iterdir()]


def environment(realm: Realm, name: str, source: str) -> dict[str, str]:
    return {**LISTEN, "HSMKM_TOKEN_PIN": SOURCES[source].format(pin=realm.home(name) / "token" / "pin")}


@pytest.fixture(scope="module")
def crashes(realm_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Crashes:
    realm = copy_realm(realm_template, tmp_path_factory.mktemp("dumps") / "realm")
    told = Crashes(realm)
    line_key = add_pem_party(realm, "pem-line", "line", "4C494E0000000077", "factory")
    (made,) = realm.rows("factory", "meter", "provision", str(realm.order(*METERS.values())), "--line", "pem-line")
    opened = open_package(Path(made["package"]), realm.folder / "pki" / "root.pem", line_key, realm.folder)
    told.keys |= {"the model": realm.initial_keys(), **opened}
    for source in SOURCES:
        _end_an_injection(told, source)
        _end_at_the_last_word(told, source)
        for name, *command in (("utility", "serve"), ("concentrator", "concentrator", "run")):
            _end_what_listens(told, source, name, *command)
    return told


@contextmanager
def _folder(crashes: Crashes, name: str) -> Iterator[Path]:
    folder = crashes.realm.folder / "run" / name.replace(" ", "-")
    folder.mkdir(parents=True)
    yield folder


def _end_an_injection(crashes: Crashes, source: str) -> None:
    realm, name = crashes.realm, f"inject, {source}"
    number = METERS[source]
    arguments = ("meter", "inject", str(number), "--address")
    with virtual_meters(realm, number) as ports, SlowMeter(ports[number]) as meter, _folder(crashes, name) as folder:
        given = environment(realm, "factory", source)
        with hold(realm, "factory", *arguments, meter.address, environment=given, folder=folder) as held:
            meter.wait_reached()
            crashes.end(name, held, folder)
        crashes.said[name] = held.stdout + held.stderr
        assert held.exit_code == -signal.SIGABRT


def _end_at_the_last_word(crashes: Crashes, source: str) -> None:
    realm, name = crashes.realm, f"provision, {source}"
    with _folder(crashes, name) as folder:
        given, order = environment(realm, "factory", source), realm.order(700 + len(crashes.cores))
        with hold(
            realm, "factory", "meter", "provision", str(order), "--line", "line", environment=given, folder=folder
        ) as held:
            wait_held(held)
            crashes.end(name, held, folder)
        crashes.said[name] = held.stdout + held.stderr


def _end_what_listens(crashes: Crashes, source: str, name: str, *command: str) -> None:
    realm, what = crashes.realm, f"{' '.join(command)}, {source}"
    given = environment(realm, name, source) | {"HSMKM_CONCENTRATOR_AIM_URL": "https://127.0.0.1:9"}
    with (
        _folder(crashes, what) as folder,
        listening(realm, name, *command, environment=given, folder=folder) as (held, _),
    ):
        crashes.end(what, held, folder)
    crashes.said[what] = held.stdout + held.stderr


def test_no_core_file_of_an_orchestrating_process_holds_a_key_or_a_pin(crashes: Crashes) -> None:
    needles = crashes.needles()
    assert len(crashes.cores) == 4 * len(SOURCES)
    assert {len(core) > 1 << 20 for core in crashes.cores.values()} == {True}
    assert {name: hits for name, core in crashes.cores.items() if (hits := needles.within(core))} == {}


def test_no_traceback_argument_or_environment_holds_a_key_or_a_pin(crashes: Crashes) -> None:
    needles = crashes.needles()
    assert all(b"Fatal Python error: Aborted" in said for said in crashes.said.values()), crashes.said
    spoken = crashes.said | crashes.commands
    assert {name: hits for name, octets in spoken.items() if (hits := needles.within(octets))} == {}


def test_a_worker_leaves_no_core_file_though_its_owner_may(crashes: Crashes) -> None:
    assert set(crashes.workers.values()) == {(0, 0)}
    assert crashes.workers.keys() >= {"inject, file", "serve, command", "concentrator run, file"}
    assert set(map(tuple, crashes.left.values())) == {()}


def test_the_same_search_finds_a_key_that_is_planted_in_a_process_that_crashes(tmp_path: Path) -> None:
    key = secrets.token_bytes(16)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(key)
        process.stdin.flush()
        assert process.stdout.readline() == b"READY\n"
        core = abort(process.pid, tmp_path)
        process.stdin.close()
    assert "meter guek raw" in Needles(key_secrets({"meter": {"guek": key}})).within(core)
