"""The field of a realm: delivered meters, and the AIM's service, concentrators and meters as processes of their own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, SecuritySuite, SystemTitle
from hsmkm.link.tls import client_context
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import MeterState, load, save_to
from hsmkm.steps.communicate import read
from hsmkm.steps.deliver import accept_receipt
from hsmkm.steps.exporting import export
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party, open_listing
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_file
from hsmkm.steps.register import register
from hsmkm.steps.register_party import PartyPlan, register_party
from hsmkm.steps.results import Outcome
from hsmkm.store import key_sets, meters, packages
from tests.ports import held_port
from tests.realm import ACTOR, HSMKM, TITLES, Realm, title_of

SERIALS = tuple(range(1, 13))
ENERGY = AttributeRef(3, LogicalName.parse("1.0.1.8.0.255"), 2)
PATIENCE = 60.0
KINDS = {"concentrator": "client", "other-concentrator": "relay"}


def deliver_meters(realm: Realm, fleet: Mapping[int, int] | None = None) -> None:
    """Take steps 1 to 4 for every serial number: provisioned, injected, delivered to the utility, receipted.

    `fleet` gives serial numbers with their suites; without it, they are all of suite 0.
    """
    suites = fleet or dict.fromkeys(SERIALS, 0)
    make_meters(realm, suites)
    with realm.open("factory") as party:
        sent = export(party, "delivery", "utility", tuple(map(title_of, suites)), None)
    with realm.open("utility") as party:
        receipt = receive_file(party, sent.path).receipt
    with realm.open("factory") as party:
        accept_receipt(party, receipt)


def make_meters(realm: Realm, suites: Mapping[int, int]) -> None:
    """Take steps 1 and 2 for these serial numbers with their suites."""
    folder = realm.folder / "meters"
    folder.mkdir(exist_ok=True)
    for serial, suite in suites.items():
        save_to(state_path(realm, serial))(with_initial_keys(realm, serial, suite))
    paths = [state_path(realm, serial) for serial in suites]
    with serving([Meter(load(path), save=save_to(path)) for path in paths]) as ports, realm.open("factory") as party:
        provision(party, realm.mixed_order(suites), "line")
        for serial, port in zip(suites, ports, strict=True):
            inject(party, title_of(serial), f"127.0.0.1:{port}")


def state_path(realm: Realm, serial: int) -> Path:
    return realm.folder / "meters" / f"{title_of(serial)}.json"


def with_initial_keys(realm: Realm, serial: int, suite: int) -> MeterState:
    keys = {KeyId[name.upper()]: value for name, value in realm.initial_keys(suite).items()}
    return MeterState(SystemTitle.parse(title_of(serial)), SecuritySuite(suite), keys)


@dataclass
class Running:
    """A process that printed READY and its ports; its log is what it wrote to stderr."""

    process: subprocess.Popen[str]
    ports: list[int]
    log: Path

    @property
    def port(self) -> int:
        return self.ports[0]

    def logged(self, text: str, after: int = 0) -> None:
        """Wait until the log has this text, behind so many characters."""
        wait_until(lambda: text in self.log.read_text()[after:], self.log.read_text)

    def workers(self) -> list[int]:
        """The processes that it started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(number) for number in children.split()]

    def stop(self) -> None:
        """Stop it as an operator does; it must end in good order and never have stumbled."""
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()
        assert "Traceback" not in self.log.read_text(), self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)


def is_alive(process: int) -> bool:
    """Tell whether a process runs; one that ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def wait_until(true: Callable[[], bool], told: Callable[[], str] = str, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, told()
        time.sleep(0.05)


@dataclass
class Field:
    """A realm whose processes run as long as the context of `open_field`."""

    realm: Realm
    stack: ExitStack
    ports: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    started: int = 0

    def start(self, name: str, *arguments: str, environment: dict[str, str] | None = None) -> Running:
        """Start `hsmkm ARGUMENTS` in a party's home; it is stopped at the end unless it was before."""
        self.started += 1
        log = self.realm.folder / f"{name}-{self.started}.log"
        command = [str(HSMKM), "--home", str(self.realm.home(name)), "--actor", ACTOR, *arguments]
        return self.stack.enter_context(started(command, log, environment or {}))

    def listen(self, name: str) -> str:
        """Where a party's process listens, the same each time; nobody else gets the port in between."""
        if name not in self.held:
            self.held[name] = self.stack.enter_context(held_port())
        return f"127.0.0.1:{self.held[name]}"

    def serve(self) -> Running:
        """Start the AIM's service, on the same port each time."""
        environment = {"HSMKM_SERVICE_LISTEN": self.listen("utility")}
        running = self.start("utility", "serve", environment=environment)
        self.ports["utility"] = running.port
        return running

    def concentrate(self, name: str = "concentrator", reading: dict[str, str] | None = None) -> Running:
        """Start a concentrator, on the same port each time, known to the head end with it.

        `reading` are its settings in the section concentrator.reading.
        """
        environment = {
            "HSMKM_CONCENTRATOR_LISTEN": self.listen(name),
            "HSMKM_CONCENTRATOR_AIM_URL": f"https://127.0.0.1:{self.ports['utility']}",
            "HSMKM_CONCENTRATOR_POLL_SECONDS": "1",
            "HSMKM_CONCENTRATOR_KIND": KINDS[name],
        }
        environment |= {f"HSMKM_CONCENTRATOR_READING_{key.upper()}": value for key, value in (reading or {}).items()}
        running = self.start(name, "concentrator", "run", environment=environment)
        self.at(name, running.port)
        return running

    def at(self, name: str, port: int) -> None:
        """Tell the utility where a concentrator is."""
        if self.ports.get(name) == port:
            return
        self.ports[name] = port
        folder = self.realm.folder / "certificates" / name
        plan = PartyPlan(name, "concentrator", (), KINDS[name], f"127.0.0.1:{port}", folder, replace=True)
        with self.realm.open("utility") as party:
            register_party(party, plan)

    def meters(self, *serials: int, options: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        """Start virtual meters with what their state files say, and give (title, address) of each."""
        paths = [str(state_path(self.realm, serial)) for serial in serials]
        ports = self.start("utility", "simulate", "meter", *options, *paths).ports
        return [(title_of(serial), f"127.0.0.1:{port}") for serial, port in zip(serials, ports, strict=True)]

    def register(
        self, places: list[tuple[str, str]], concentrator: str = "concentrator", wait: int = 30
    ) -> list[Outcome]:
        with self.realm.open("utility") as party:
            return register(party, places, concentrator, wait)

    def key_states(self, name: str, serial: int) -> list[tuple[int, str]]:
        """List generation and state of each key set that a party holds of a meter."""
        with self.realm.open(name) as party:
            return key_states(party, serial)

    def address(self, name: str, serial: int) -> str | None:
        with open_listing(self.realm.home(name)) as store, store.read() as tx:
            found = meters.get(tx, bytes.fromhex(title_of(serial)))
        return found.address if found else None

    def package_states(self, name: str = "utility", peer: str = "concentrator") -> list[tuple[str, str]]:
        """List purpose and state of each package that went between a party and another, oldest first."""
        with open_listing(self.realm.home(name)) as store, store.read() as tx:
            found = packages.listing(tx, peer=peer)
        return [(item.purpose, item.state) for item in sorted(found, key=lambda item: (item.created, item.sequence))]

    def ask(
        self, home: Path, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Ask the service as the holder of a home's TLS certificate; status and what the JSON says."""
        return ask(client_context(home, TITLES["utility"]), self.ports["utility"], path, body, headers)


def key_states(party: Party, serial: int) -> list[tuple[int, str]]:
    with party.store.read() as tx:
        found = key_sets.for_meter(tx, bytes.fromhex(title_of(serial)))
    return sorted((key_set.ref.generation, state.value) for key_set, state in found)


def energy(party: Party, serial: int) -> int:
    """Read a meter through its concentrator, under the keys that the store calls active."""
    (reading,) = read(party, title_of(serial), (ENERGY,))
    assert isinstance(reading.data.value, int)
    return reading.data.value


def ask(
    context: ssl.SSLContext, port: int, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(content) if is_json else content
    finally:
        connection.close()


@contextmanager
def started(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[Running]:
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment
        ) as process,
    ):
        try:
            assert process.stdout is not None
            ready = process.stdout.readline().split()
            assert ready[:1] == ["READY"], log.read_text()
            running = Running(process, [int(port) for port in ready[1:]], log)
            yield running
            if process.poll() is None:
                running.stop()
        finally:
            process.send_signal(signal.SIGKILL)


@contextmanager
def open_field(realm: Realm) -> Iterator[Field]:
    """Give a realm processes, and end them."""
    with ExitStack() as stack:
        yield Field(realm, stack)
