"""Renewal: all stages of section 6 of the steps, beside other clients that only associate, transfer and associate.

The clients are gurux-dlms and dlms-cosem, as processes of their own (.venv-interop), against meters of the same process
of virtual meters. They keep nothing, prove nothing durable and take keys from the command line; hsmkm makes the keys in
the token, and each stage durable with its audit record before the next. "a process for each" is what a shell script
over a list of meters does.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bench_lab import FLAG, MODEL, SCRIPTS, Lab
from bench_line import Line

from hsmkm.dlms.types import KeyId, SecuritySuite, SystemTitle
from hsmkm.simulator.state import MeterState, load, save_to
from hsmkm.steps.model import import_keys
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.provision import provision
from hsmkm.steps.renew_many import renew_many
from hsmkm.steps.results import Outcome
from hsmkm.store import meters
from hsmkm.token.types import KeyRole
from hsmkm.token.workers import Worker
from tests.peer import peer_python

ACTOR = "bench"
PEERS = SCRIPTS.parent / "tests" / "interop"
ROLES = (KeyRole.GUEK, KeyRole.GAK)
METERS, FEW = 60, 4


def place(party: Party, addresses: dict[str, str]) -> None:
    """Say where meters are reached."""
    with party.store.begin("meter-address", f"{len(addresses)} meters", {}) as tx:
        for title, address in addresses.items():
            meters.update(tx, replace(meters.find(tx, title), address=address))


def renew(party: Party, titles: Sequence[str]) -> Generator[Outcome, None, None]:
    """Renew meters with as many threads as the settings say."""
    yield from renew_many(party, titles, ROLES)


@dataclass
class Street:
    """Virtual meters of one process: the first half is ours, the second is renewed by other clients."""

    lab: Lab
    titles: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    workers: list[Worker[Party]] = field(default_factory=list)
    line: object = None

    @property
    def ours(self) -> list[str]:
        """The meters that hsmkm renews."""
        return self.titles[:METERS]

    @property
    def theirs(self) -> list[str]:
        """The meters that other clients renew."""
        return self.titles[METERS:]

    def renew(self, workers: int, count: int) -> float:
        """Renew so many meters by so many worker processes; the seconds that they took."""
        self._open(workers)
        parts = [self.ours[:count][number::workers] for number in range(workers)]
        with ThreadPoolExecutor(workers) as pool:
            began = time.monotonic()
            done = [*pool.map(lambda at: list(self.workers[at].stream(renew, parts[at])), range(workers))]
            seconds = time.monotonic() - began
        failed = [item for part in done for item in part if item.state != "active"]
        if failed:
            raise RuntimeError(f"{failed[0].system_title}: {failed[0].detail}")
        return seconds

    def renew_by(self, program: str, count: int) -> float:
        """Let another client renew so many meters one after the other in one process; the seconds that it says."""
        self._open()
        done = self._run(program, "\n".join(self._known(title) for title in self.theirs[:count]))
        return float(done.splitlines()[-1])

    def renew_by_processes(self, program: str, count: int) -> float:
        """Let another client renew so many meters with a process for each."""
        self._open()
        began = time.monotonic()
        for title in self.theirs[:count]:
            self._run(program, self._known(title))
        return time.monotonic() - began

    def _run(self, program: str, text: str) -> str:
        command = [str(peer_python()), str(PEERS / program)]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own script

    def _known(self, title: str) -> str:
        state = load(self._state(title))
        keys = {key_id.name.lower(): key.hex() for key_id, key in state.keys.items()}
        return json.dumps({"port": self.ports[title], "counter": max(state.rx_ic - 1, 0), "keys": keys})

    def _state(self, title: str) -> Path:
        return self.lab.folder / "meters" / f"{title}.json"

    def _open(self, workers: int = 1) -> None:
        """Start the meters and the workers, which end with the line."""
        if self.line is self.lab.stack:
            return
        self.line = self.lab.stack
        home = self.lab.home("factory")
        self.workers = [self.lab.stack.enter_context(Worker(open_party, home, ACTOR)) for _ in range(workers)]
        if not self.titles:
            self._make(self.workers[0])
        self._serve()
        self.workers[0].call(place, {title: f"127.0.0.1:{port}" for title, port in self.ports.items()})

    def _make(self, worker: Worker[Party]) -> None:
        """Provision the meters, and write the state files that they come with."""
        keys = {key_id: secrets.token_bytes(16) for key_id in KeyId}
        path = self.lab.folder / "initial.keys"
        path.touch(0o600)
        path.write_text("".join(f"{key_id.name.lower()} = {key.hex()}\n" for key_id, key in keys.items()))
        worker.call(import_keys, MODEL, 0, path)
        path.unlink()
        order = self.lab.order(2 * METERS)
        worker.call(provision, order, "line")
        serials = [int(line.split(",")[1]) for line in order.read_text().splitlines()[1:]]
        self.titles = [(FLAG.encode() + serial.to_bytes(5, "big")).hex().upper() for serial in serials]
        self._state("").parent.mkdir()
        for title in self.titles:
            save_to(self._state(title))(MeterState(SystemTitle.parse(title), SecuritySuite(0), dict(keys)))

    def _serve(self) -> None:
        command = [str(Path(sys.executable).with_name("hsmkm")), "simulate", "meter"]
        process = self.lab.stack.enter_context(
            subprocess.Popen([*command, *map(str, map(self._state, self.titles))], stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command
        )
        self.lab.stack.callback(process.terminate)
        ready, *ports = (process.stdout.readline() if process.stdout else "").split()
        if ready != "READY":
            raise RuntimeError("the virtual meters did not start")
        self.ports = dict(zip(self.titles, map(int, ports), strict=True))


def _has_cosem() -> bool:
    command = [str(peer_python()), "-c", "import dlms_cosem"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603 - the peers' interpreter


def lines(lab: Lab) -> Iterator[Line]:
    """Give lines for one worker and two beside gurux-dlms, and beside dlms-cosem where that is installed."""
    if not peer_python().exists():
        return
    street = Street(lab)
    gurux, cosem = "gurux_renew.py", "cosem_renew.py"
    line = partial(Line, unit="renewals", count=METERS, few=FEW, axis="workers")
    one, two = partial(street.renew, 1), partial(street.renew, 2)
    loop = partial(street.renew_by, gurux)
    yield line("renew-1", floor="a gurux-dlms client, one process for all", ours=one, base=loop, at=1)
    yield line("renew-2", floor="a gurux-dlms client, one process for all", ours=two, base=loop, at=2, reach=10)
    each = partial(street.renew_by_processes, gurux)
    yield line("renew-2-script", floor="a gurux-dlms client, a process for each", ours=two, base=each, base_count=10)
    if _has_cosem():
        loop = partial(street.renew_by, cosem)
        yield line("renew-2-cosem", floor="a dlms-cosem client, one process for all", ours=two, base=loop)
