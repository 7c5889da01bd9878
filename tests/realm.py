"""A realm of parties for tests: an authority, a factory, its line equipment, a utility and two concentrators.

Each is a real home folder with a token (SoftHSM, or NSS where a test asks for it), a store, certificates of one PKI and
the others registered, with keys on both curves under authorities on P-384. It is built once for a test process and
copied for each test, tokens included. `Realm.open` opens a party in this process, one at a time; `Realm.cli` runs the
installed command as a user does.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from hsmkm.config import load_settings
from hsmkm.steps import certify, model
from hsmkm.steps.issue import issue
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.register_party import PartyPlan, register_party
from hsmkm.steps.setup import make_token, set_in_file, write_home
from hsmkm.token.session import SOFTHSM
from tests import postgresql
from tests.database import is_file

ACTOR = "tester"
HSMKM = Path(sys.executable).with_name("hsmkm")
TITLES = {
    "authority": "4155540000000001",
    "factory": "4641430000000002",
    "line": "4C494E0000000003",
    "utility": "5554490000000004",
    "concentrator": "434F4E0000000005",
    "other-concentrator": "434F4E0000000006",
}
ROLES = {name: name for name in TITLES} | {"other-concentrator": "concentrator"}
INITIAL_KEYS = ("guek", "gbek", "gak", "master")
MODELS = {0: "virtual", 1: "virtual-1", 2: "virtual-2"}
KEY_OCTETS = {0: 16, 1: 16, 2: 32}


@dataclass(frozen=True)
class Realm:
    """The folder that holds everything; a party's home is the folder of its name."""

    folder: Path

    def home(self, name: str) -> Path:
        return self.folder / name

    def url(self, name: str) -> str:
        """The address of a party's store."""
        return load_settings(self.home(name)).store_url

    def open(self, name: str) -> AbstractContextManager[Party]:
        """Open a party in this process; only one can be open at a time."""
        return open_party(self.home(name), ACTOR)

    def cli(
        self, name: str, *arguments: str, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `hsmkm --home NAME --output json ...` and give exit code, stdout and stderr."""
        command = [str(HSMKM), "--home", str(self.home(name)), "--output", "json", "--actor", ACTOR, *arguments]
        full = os.environ | (environment or {})
        return subprocess.run(command, capture_output=True, text=True, env=full, timeout=120, check=False)

    def rows(self, name: str, *arguments: str) -> list[dict[str, Any]]:
        """Run a command that must succeed and give its results."""
        done = self.cli(name, *arguments)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def initial_keys(self, suite: int = 0) -> dict[str, bytes]:
        """The keys that the meters of a suite's virtual model come with, as they were made for this realm."""
        found: dict[str, dict[str, str]] = json.loads((self.folder / "initial.json").read_text())
        return {name: bytes.fromhex(value) for name, value in found[str(suite)].items()}

    def order(self, *serials: int, name: str = "order.csv", suite: int = 0) -> Path:
        """Write a production order for meters of FLAG id MMM and one suite."""
        return self.mixed_order(dict.fromkeys(serials, suite), name)

    def mixed_order(self, suites: Mapping[int, int], name: str = "order.csv") -> Path:
        """Write a production order for meters of FLAG id MMM, given by serial number with their suites."""
        path = self.folder / name
        lines = [f"MMM,{serial},{MODELS[suite]},{suite}\n" for serial, suite in suites.items()]
        path.write_text("flag,serial,model,suite\n" + "".join(lines))
        return path


def title_of(serial: int) -> str:
    """The system title that an order makes of a serial number of FLAG id MMM."""
    return (b"MMM" + serial.to_bytes(5, "big")).hex().upper()


def build_realm(folder: Path, profiles: Mapping[str, str] | None = None, *, initial_keys: bool = True) -> Realm:
    """Make every home, the PKI and the registrations; `profiles` names the tokens that are not SoftHSM, by party.

    The factory imports the initial keys of the models, unless a line equipment brings the first keys into meters.
    """
    realm, kinds = Realm(folder), profiles or {}
    database = postgresql.shared().create() if postgresql.chosen() else ""
    for name, title in TITLES.items():
        flags = ("MMM",) if name == "factory" else ()
        settings = write_home(realm.home(name), name, ROLES[name], title, flags, kinds.get(name, SOFTHSM))
        if database:
            _keep_on_server(settings.home, database)
        make_token(load_settings(settings.home), ACTOR)
    _make_authorities(realm)
    for name in list(TITLES)[1:]:
        certify_home(realm, name)
    _register(realm)
    if initial_keys:
        _import_initial_keys(realm)
    return realm


def _make_authorities(realm: Realm) -> None:
    with realm.open("authority") as party:
        certify.create_root(party, "Test Root", "P-384")
        certify.create_issuing(party, "issuing", "Test Issuing", "P-384")
        certify.create_issuing(party, "package-issuing", "Test Package Issuing", "P-384")
        certify.publish(party, realm.folder / "pki", 7)


def certify_home(realm: Realm, name: str) -> None:
    """Let a home request its certificates, and the authority issue them."""
    requests, issued = realm.folder / "requests" / name, realm.folder / "certificates" / name
    with realm.open(name) as party:
        certify.request(party, ("127.0.0.1", "hsmkm.example"), requests)
    with realm.open("authority") as party:
        issue(party, requests, issued)
    with realm.open(name) as party:
        certify.place_anchor(party, realm.folder / "pki" / "root.pem")
        certify.update_trust(party, realm.folder / "pki")
        certify.install(party, issued)


def _register(realm: Realm) -> None:
    def plan(name: str, *flags: str, kind: str = "", address: str = "") -> PartyPlan:
        return PartyPlan(name, ROLES[name], flags, kind, address, realm.folder / "certificates" / name)

    with realm.open("factory") as party:
        register_party(party, plan("line"))
        register_party(party, plan("utility"))
    with realm.open("utility") as party:
        register_party(party, plan("factory", "MMM"))
        register_party(party, plan("concentrator", kind="client", address="127.0.0.1:9"))
        register_party(party, plan("other-concentrator", kind="relay", address="127.0.0.1:9"))
    for name in ("concentrator", "other-concentrator"):
        with realm.open(name) as party:
            register_party(party, plan("utility"))
        set_in_file(realm.home(name) / "hsmkm.toml", "concentrator", "aim", "utility")


def _import_initial_keys(realm: Realm) -> None:
    made: dict[int, dict[str, str]] = {}
    path = realm.folder / "initial.keys"
    path.touch(0o600)
    with realm.open("factory") as party:
        for suite, name in MODELS.items():
            made[suite] = {role: secrets.token_hex(KEY_OCTETS[suite]) for role in INITIAL_KEYS}
            path.write_text("".join(f"{role} = {value}\n" for role, value in made[suite].items()))
            model.import_keys(party, name, suite, path)
    path.unlink()
    (realm.folder / "initial.json").write_text(json.dumps(made))


def copy_realm(template: Realm, folder: Path) -> Realm:
    """Copy a realm for one test; SoftHSM's configuration follows the home by itself."""
    shutil.copytree(template.folder, folder)
    source = _database(template)
    if source:
        database = postgresql.shared().create(source)
        for path in folder.glob("*/hsmkm.toml"):
            set_in_file(path, "store", "url", load_settings(path.parent).store.url.replace(source, database))
    return Realm(folder)


def forget_realm(realm: Realm) -> None:
    """Drop what the realm has in a database server."""
    database = _database(realm)
    if database:
        postgresql.shared().drop(database)


def _database(realm: Realm) -> str:
    """Name the database of a realm's stores; empty where they are files."""
    if not postgresql.chosen():
        return ""
    url = realm.url("utility")
    return "" if is_file(url) else make_url(url).database or ""


def _keep_on_server(home: Path, database: str) -> None:
    """Give a home its store in a schema of its own, so that one database holds all of a realm."""
    cluster = postgresql.shared()
    cluster.run(f'CREATE SCHEMA "{home.name}"', database)
    set_in_file(home / "hsmkm.toml", "store", "url", cluster.url(database, options=f"-csearch_path%3D{home.name}"))


@contextmanager
def running(command: list[str], log: Path) -> Iterator[list[int]]:
    """Run a process that prints `READY <port>...` and give its ports; it is stopped with SIGTERM at the end."""
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            ready = process.stdout.readline().split()
            assert ready[:1] == ["READY"], log.read_text()
            yield [int(port) for port in ready[1:]]
        finally:
            process.terminate()
            process.wait(20)
