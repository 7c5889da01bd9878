"""What scripts/million works with: a folder with the parties, and the journal of what is done.

Everything lies in the folder, so that a run which ended early goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_lab import children_of, cpu_seconds
from bench_line import machine
from fleet_files import write_fleet
from million_work import process

from hsmkm.steps.exporting import export
from hsmkm.steps.party import Party, open_party
from hsmkm.token.workers import Worker
from tests import postgresql
from tests.interop.package_opener import NAME as OPENER
from tests.interop.package_opener import PackageOpener
from tests.realm import HSMKM, Realm, build_realm, title_of

ACTOR = "million"

Record = dict[str, Any]


class LabError(Exception):
    """The folder is that of another run, or a process did not do what it is there for."""


@dataclass(frozen=True)
class Plan:
    """How many meters there are to be, in orders of how many, and where the stores lie."""

    meters: int
    order: int
    store: str

    @property
    def orders(self) -> list[range]:
        """The serial numbers of each order."""
        return [
            range(first, min(first + self.order, self.meters + 1)) for first in range(1, self.meters + 1, self.order)
        ]


class Lab:
    """The parties, and what was done with them."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self._journal = folder / "journal.jsonl"
        self.records: list[Record] = []
        for line in self._journal.read_text(encoding="utf-8").splitlines() if self._journal.exists() else ():
            self.records.append(json.loads(line))
        if self.records and self.records[0]["plan"] != repr(plan):
            raise LabError(f"{folder} is that of another run: {self.records[0]['plan']}")
        self.realm = Realm(folder / "realm")
        if postgresql.chosen():
            postgresql.shared()
        if not self.records:
            here = machine()  # its load before this run begins
            shutil.rmtree(self.realm.folder, ignore_errors=True)
            build_realm(self.realm.folder)
            PackageOpener.join(self.realm)
            self.note({"plan": repr(plan), "machine": here})

    def note(self, record: Record) -> None:
        """Write down what was done; a run that goes on reads it."""
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)

    def of(self, phase: str) -> list[Record]:
        """Give the records of a phase, in the order of the orders."""
        return [record for record in self.records if record.get("phase") == phase]

    def made(self, phase: str, order: int) -> list[str]:
        """Give what a phase made of an order."""
        return next(record["made"] for record in self.of(phase) if record["order"] == order)

    @contextmanager
    def party(self, name: str) -> Iterator[Worker[Party]]:
        """Start a party's worker."""
        with Worker(open_party, self.realm.home(name), ACTOR) as worker:
            yield worker

    @contextmanager
    def fleet(self, serials: Sequence[int]) -> Iterator[Path]:
        """Run a fleet of these meters, which follow one another, with their first keys; where they are, as a list."""
        titles = [title_of(serial) for serial in serials]
        folder = self.folder / f"fleet-{serials[0]}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with self.realm.open("factory") as party:
            package = export(party, "delivery", OPENER, tuple(titles), None).path
        keys = PackageOpener.of(self.realm).open(package)
        first, states = write_fleet(folder, titles, self.realm.initial_keys(), keys)
        files = ("--states", states, "--places", folder / "places")
        command = [HSMKM, "simulate", "fleet", first, "--meters", len(titles), *files]
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as running:  # noqa: S603 - ours
            try:
                ready = running.stdout.readline().split() if running.stdout else []
                if ready[:1] != ["READY"]:
                    raise LabError("the fleet of virtual meters did not start")
                yield folder / "places"
            finally:
                running.terminate()


def peaks(worker: Worker[Party]) -> tuple[float, float]:
    """Tell the most memory of a party's process, and of its workers together, in megabytes."""
    party = worker.call(process)
    return _peak(party), round(sum(map(_peak, children_of(party))), 1)


def spent(worker: Worker[Party]) -> float:
    """Tell the seconds of processor time that a party's process and its workers took so far."""
    party = worker.call(process)
    return sum(map(cpu_seconds, (party, *children_of(party))))


def _peak(number: int) -> float:
    lines = Path(f"/proc/{number}/status").read_text(encoding="utf-8").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024, 1)
