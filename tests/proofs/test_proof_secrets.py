"""No key of a meter and no PIN lies in clear anywhere but in the token, at any moment of the seven steps.

Real processes do the seven steps. Wherever one stands still, with a key on its way to a meter or at its last word, its
memory, its arguments and its environment are searched, and every file and table of every home. The values to look for
come from outside: from the injection package, which the line equipment's PEM key opens, and from the meters themselves.
The worker, in which SoftHSM is the token, is the control: there the same search finds what is declared to be there.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.proofs.held import Held, children, hold, listening, wait_held
from tests.proofs.openssl import open_package
from tests.proofs.peer import SlowMeter, add_pem_party, meter_keys, virtual_meters
from tests.proofs.search import Needles, copy_memory, files_of, key_needles, key_secrets
from tests.realm import INITIAL_KEYS, Realm, copy_realm, title_of

pytestmark = pytest.mark.slow
FIRST, SECOND = 501, 502
HOMES = ("newcomer", "factory", "utility", "concentrator")
PATIENT = {"HSMKM_DLMS_TIMEOUT_SECONDS": "180"}
LISTEN = {
    "HSMKM_SERVICE_LISTEN": "127.0.0.1:0",
    "HSMKM_CONCENTRATOR_LISTEN": "127.0.0.1:0",
    "HSMKM_CONCENTRATOR_KIND": "client",
    "HSMKM_CONCENTRATOR_POLL_SECONDS": "1",
}


@dataclass
class Story:
    """What was found where while the seven steps were done; a name says what was searched, and when."""

    realm: Realm
    keys: dict[str, dict[str, bytes]] = field(default_factory=dict)
    found: dict[str, set[str]] = field(default_factory=dict)
    exposed: dict[str, set[str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    said: dict[str, bytes] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)

    def pins(self) -> dict[str, bytes]:
        files = [(name, path) for name in HOMES for path in _pin_files(self.realm.home(name))]
        return {f"{path.name} of {name}": path.read_bytes().strip() for name, path in files}

    def needles(self) -> Needles:
        """The keys that are known by now, and every PIN."""
        return Needles(key_secrets(self.keys) | self.pins())

    def note(self, place: str, hits: set[str]) -> None:
        self.found.setdefault(place, set()).update(hits)

    def look(self, moment: str, process: int, *, keep: bool = False) -> None:
        """Search an orchestrating process now, or `keep` its memory and search it when all keys are known."""
        needles = self.needles()
        self.note(f"arguments and environment: {moment}", needles.in_command(process))
        if not keep:
            self.note(f"memory: {moment}", needles.in_memory(process))
            return
        self.copies[moment] = self.realm.folder / "memory" / str(len(self.copies))
        self.copies[moment].parent.mkdir(exist_ok=True)
        copy_memory(process, self.copies[moment])

    def look_at_worker(self, moment: str, held: Held) -> None:
        (worker,) = held.workers()
        needles = self.needles()
        self.exposed[moment] = needles.in_memory(worker)
        self.note(f"the worker's arguments and environment: {moment}", needles.in_command(worker))

    def sweep(self, moment: str) -> None:
        """Search every file and table of every home now."""
        needles, keys = self.needles(), key_needles(self.keys)
        for name in HOMES:
            home = self.realm.home(name)
            self.files |= {path.name for path in files_of(home)}
            self.note(f"files: {moment}", set())
            aside = _pin_files(home)
            for place, hits in needles.in_files(home, aside).items():
                self.note(f"file {place}: {moment}", hits)
            for path in aside:
                self.note(f"file {path}: {moment}", keys.within(path.read_bytes()))
            self.note(f"tables of {name}: {moment}", needles.in_database(home / "store.db"))

    def run(self, moment: str, name: str, *arguments: str, keep: bool = False) -> list[dict[str, str]]:
        """Run a command, look into it at its last word, and give its results."""
        with hold(self.realm, name, *arguments) as held:
            wait_held(held)
            self.look(moment, held.process, keep=keep)
        return self.ended(moment, held)

    def ended(self, moment: str, held: Held) -> list[dict[str, str]]:
        assert held.exit_code == 0, held.stderr.decode()
        self.said[moment] = held.stdout + held.stderr
        results: list[dict[str, str]] = json.loads(held.stdout)
        return results

    def search_copies(self) -> None:
        needles = self.needles()
        for moment, path in self.copies.items():
            self.note(f"memory: {moment}", needles.within(path.read_bytes()))
            path.unlink()


def _pin_files(home: Path) -> list[Path]:
    return [path for path in (home / "token" / "pin", home / "token" / "so-pin") if path.exists()]


@pytest.fixture(scope="module")
def story(realm_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Story:
    realm = copy_realm(realm_template, tmp_path_factory.mktemp("secrets") / "realm")
    told = Story(realm)
    line_key = add_pem_party(realm, "pem-line", "line", "4C494E0000000077", "factory")
    _make_a_home(told)
    with virtual_meters(realm, FIRST, SECOND) as ports:
        _provision_and_inject(told, ports, line_key)
        _deliver(told)
        _register_and_renew(told, ports[FIRST])
        told.exposed["the meters"] = set().union(*map(key_needles(told.keys).in_memory, _meter_processes()))
    told.sweep("at the end")
    told.search_copies()
    return told


def _make_a_home(story: Story) -> None:
    """A new party: its PINs are born in `token init`, and its model's keys come from a file."""
    init = ("init", "--name", "newcomer", "--role", "factory", "--system-title", "4E45570000000009", "--flag", "NEW")
    assert story.realm.cli("newcomer", *init).returncode == 0
    story.run("token init", "newcomer", "token", "init")
    story.keys["the newcomer's model"] = {role: secrets.token_bytes(16) for role in INITIAL_KEYS}
    path = story.realm.folder / "newcomer.keys"
    path.touch(0o600)
    path.write_text("".join(f"{role} = {key.hex()}\n" for role, key in story.keys["the newcomer's model"].items()))
    story.run("model import-keys", "newcomer", "model", "import-keys", "virtual", "--keys", str(path))


def _provision_and_inject(story: Story, ports: dict[int, int], line_key: Path) -> None:
    realm = story.realm
    order = str(realm.order(FIRST, SECOND))
    (made,) = story.run("provision", "factory", "meter", "provision", order, "--line", "pem-line", keep=True)
    opened = open_package(Path(made["package"]), realm.folder / "pki" / "root.pem", line_key, realm.folder)
    story.keys |= {"the model": realm.initial_keys(), **opened}
    with SlowMeter(ports[FIRST]) as meter:
        arguments = ("meter", "inject", str(FIRST), "--address", meter.address)
        with hold(realm, "factory", *arguments, environment=PATIENT) as held:
            meter.wait_reached()
            story.look("inject, the keys on their way", held.process)
            story.look_at_worker("inject, the keys on their way", held)
            story.sweep("inject, the keys on their way")
            meter.let_go()
            wait_held(held)
            story.look("inject", held.process)
        story.ended("inject", held)
    story.run("inject another", "factory", "meter", "inject", str(SECOND), "--address", f"127.0.0.1:{ports[SECOND]}")
    assert {title_of(serial): meter_keys(realm, serial) for serial in (FIRST, SECOND)} == opened


def _deliver(story: Story) -> None:
    names = (str(FIRST), str(SECOND))
    (sent,) = story.run("export", "factory", "package", "export", *names, "--to", "utility")
    (taken,) = story.run("import", "utility", "package", "import", sent["file"])
    story.run("receipt", "factory", "package", "receipt", "--from-file", taken["receipt"])
    story.sweep("after the delivery")


def _register_and_renew(story: Story, port: int) -> None:
    realm = story.realm
    with listening(realm, "utility", "serve", environment=LISTEN) as (service, service_port):
        url = {"HSMKM_CONCENTRATOR_AIM_URL": f"https://127.0.0.1:{service_port}"}
        with listening(realm, "concentrator", "concentrator", "run", environment=LISTEN | url) as (node, relay_port):
            certificates = str(realm.folder / "certificates" / "concentrator")
            place = ("--kind", "client", "--address", f"127.0.0.1:{relay_port}", "--certificates", certificates)
            realm.rows("utility", "party", "add", "concentrator", "--role", "concentrator", *place, "--replace")
            with SlowMeter(port) as meter:
                _register_slowly(story, meter, {"serve": service, "concentrator run": node})
                (reading,) = story.run("read", "utility", "meter", "read", str(FIRST), "1.0.1.8.0.255")
            assert reading["obis"] == "1.0.1.8.0.255"
            story.look("serve", service.process)
            story.look("concentrator run", node.process)
            story.sweep("while all run")
    for moment, held in (("serve", service), ("concentrator run", node)):
        assert held.exit_code == 0, held.stderr
        story.said[moment] = held.stdout + held.stderr


def _register_slowly(story: Story, meter: SlowMeter, services: dict[str, Held]) -> None:
    arguments = ("meter", "register", str(FIRST), "--address", meter.address, "--concentrator", "concentrator")
    with hold(story.realm, "utility", *arguments, "--wait", "120", environment=PATIENT) as held:
        meter.wait_reached()
        for name, process in {"register": held, **services}.items():
            story.look(f"{name}, the renewed keys on their way", process.process, keep=True)
        meter.let_go()
        wait_held(held)
        story.keys[f"{title_of(FIRST)} renewed"] = meter_keys(story.realm, FIRST)
        story.look("register", held.process)
    story.ended("register", held)
    assert story.keys[f"{title_of(FIRST)} renewed"]["guek"] != story.keys[title_of(FIRST)]["guek"]


def _meter_processes() -> list[int]:
    started = children(os.getpid())
    return [each for each in started if b"simulate" in Path(f"/proc/{each}/cmdline").read_bytes()]


def test_no_key_and_no_pin_was_in_a_file_a_table_or_an_orchestrating_process(story: Story) -> None:
    assert {place: hits for place, hits in story.found.items() if hits} == {}


def test_every_step_was_searched_and_every_key_was_known(story: Story) -> None:
    searched = {place.removeprefix("memory: ") for place in story.found if place.startswith("memory: ")}
    assert searched == {
        "token init",
        "model import-keys",
        "provision",
        "inject",
        "inject another",
        "inject, the keys on their way",
        "export",
        "import",
        "receipt",
        "register",
        "register, the renewed keys on their way",
        "read",
        "serve",
        "serve, the renewed keys on their way",
        "concentrator run",
        "concentrator run, the renewed keys on their way",
    }
    assert {len(keys) for keys in story.keys.values()} == {4}
    assert len({key for keys in story.keys.values() for key in keys.values()}) >= 4 * 4 + 2
    assert {"store.db", "store.db-wal", "hsmkm.toml", "token.object"} <= story.files
    assert any(name.endswith(".p7m") for name in story.files)


def test_nothing_was_said_that_holds_a_key_or_a_pin(story: Story) -> None:
    assert story.said.keys() >= {"provision", "inject", "export", "import", "register", "serve", "concentrator run"}
    needles = story.needles()
    assert {moment: needles.within(octets) for moment, octets in story.said.items() if needles.within(octets)} == {}


def test_the_same_search_finds_in_the_worker_what_is_declared_to_be_there(story: Story) -> None:
    exposed = story.exposed["inject, the keys on their way"]
    assert "the model gak raw" in exposed
    assert "pin of factory raw" in exposed


def test_the_same_search_finds_every_key_of_a_meter_that_holds_it_in_clear(story: Story) -> None:
    for name in (title_of(SECOND), f"{title_of(FIRST)} renewed"):
        for role in story.keys[name]:
            assert any(hit.startswith(f"{name} {role} ") for hit in story.exposed["the meters"]), (name, role)


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda key: key,
    "hex": lambda key: key.hex().encode(),
    "capital hex": lambda key: key.hex().upper().encode(),
    "base64": b64encode,
    "base64 within other octets": lambda key: b64encode(b"7" + key + b"1234"),
    "base64 within others still": lambda key: b64encode(b"77" + key + b"1234"),
    "escapes": lambda key: repr(key).encode(),
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("place", [0, 3, (4 << 20) - 5])
def test_a_planted_key_is_found_in_a_file_of_a_home(tmp_path: Path, form: str, place: int) -> None:
    key = secrets.token_bytes(16)
    needles = key_needles({"meter": {"guek": key}})
    planted = tmp_path / "token" / "some" / "file"
    planted.parent.mkdir(parents=True)
    planted.write_bytes(b"." * place + FORMS[form](key) + b".")
    assert needles.in_files(tmp_path).keys() == {str(planted)}
    assert not needles.in_files(tmp_path, [planted])
    assert not key_needles({"meter": {"guek": secrets.token_bytes(16)}}).in_files(tmp_path)


def test_a_planted_key_is_found_in_a_table_also_where_the_file_cuts_it_into_pages(tmp_path: Path) -> None:
    key, other = secrets.token_bytes(16), secrets.token_bytes(16)
    needles = key_needles({"meter": {"guek": key, "gak": other}})
    path = tmp_path / "store.db"
    for place in range(4060, 4090):
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE notes (number INTEGER, text TEXT, octets BLOB)")
            database.execute("INSERT INTO notes VALUES (1, ?, ?)", (other.hex(), b"." * place + key + b"." * 5000))
        assert {"meter guek raw", "meter gak in hex"} <= needles.in_database(path)


def test_a_planted_key_is_found_in_the_memory_the_arguments_and_the_environment_of_a_process(tmp_path: Path) -> None:
    key, argument, variable = (secrets.token_bytes(16) for _ in range(3))
    needles = key_needles({"meter": {"guek": key, "gak": argument, "gbek": variable}})
    program = "import sys; kept = sys.stdin.buffer.read(16); print('READY', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, argument.hex()],
        env={**os.environ, "PLANTED": b64encode(variable).decode()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(key)
        process.stdin.flush()
        assert process.stdout.readline() == b"READY\n"
        found, copy = needles.in_memory(process.pid), tmp_path / "copy"
        copy_memory(process.pid, copy)
        assert {"meter guek raw", "meter gak in hex"} <= found
        assert found == needles.within(copy.read_bytes())
        assert needles.in_command(process.pid) >= {"meter gak in hex", "meter gbek in base64 (0)"}
        process.stdin.close()
