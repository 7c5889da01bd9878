"""Key packages: export and import of many meters, each beside the C loop's 14 calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench_lab import Lab, Loop
from bench_line import Line

from hsmkm.steps.exporting import export
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_file
from hsmkm.token.workers import Worker

ACTOR = "bench"
FLOOR = "a C loop of the same 14 calls"


class Delivery:
    """The factory and the utility, each with so many workers (0: one for each core), started when they are needed."""

    def __init__(self, lab: Lab, processes: int) -> None:
        self.lab = lab
        self.processes = processes
        self._workers: dict[str, Worker[Party]] = {}

    def export(self, meters: int) -> float:
        """Export so many meters, which were provisioned before; the seconds from the order's name to the package."""
        return self._exported(meters)[0]

    def take(self, meters: int) -> float:
        """Import a package of so many new meters; the seconds from its file to its receipt."""
        _, path = self._exported(meters)
        return _seconds(partial(self._worker("utility").call, receive_file, path))

    def _exported(self, meters: int) -> tuple[float, Path]:
        factory = self._worker("factory")
        order = factory.call(provision, self.lab.order(meters), "line").order
        made: list[Path] = []
        seconds = _seconds(lambda: made.append(factory.call(export, "delivery", "utility", (), order).path))
        return seconds, made[0]

    def _worker(self, party: str) -> Worker[Party]:
        """Give a party's worker, which ends with the line."""
        if party not in self._workers:
            os.environ["HSMKM_WORKERS_PROCESSES"] = str(self.processes)
            worker = Worker(open_party, self.lab.home(party), ACTOR)
            self._workers[party] = self.lab.stack.enter_context(worker)
        return self._workers[party]


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def lines(lab: Lab) -> Iterator[Line]:
    """Give a line for export and one for import, and both with one worker; a meter is exported or imported once."""
    for suffix, processes, reach in (("", 0, 0.8), ("-1", 1, None)):
        sending, taking = Delivery(lab, processes), Delivery(lab, processes)
        for name, party, ours in (("export", "factory", sending.export), ("import", "utility", taking.take)):
            yield Line(
                name=name + suffix,
                unit="meters",
                floor=FLOOR,
                ours=ours,
                base=partial(lab.loop, Loop(party, "transfer")),
                count=10_000,
                base_count=5_000,
                few=100,
                reach=reach,
            )
