"""Provisioning: key sets of suite-0 meters, durable, with their injection package, beside the C loop's 18 calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from bench_lab import Lab, Loop
from bench_line import Line

from hsmkm.steps.party import Party, open_party
from hsmkm.steps.provision import provision
from hsmkm.token.workers import Worker

ACTOR = "bench"
FLOOR = "a C loop of the same 18 calls"


class Factory:
    """The factory's worker, which is started at the first measurement, with so many processes of its own."""

    def __init__(self, lab: Lab, processes: int) -> None:
        self.lab = lab
        self.processes = processes
        self._worker: Worker[Party] | None = None

    def provision(self, meters: int) -> float:
        """Provision an order of so many meters; the seconds from order file to injection package."""
        worker = self._worker or self._started()
        order = self.lab.order(meters)
        began = time.monotonic()
        worker.call(provision, order, "line")
        return time.monotonic() - began

    def _started(self) -> Worker[Party]:
        """Start it, to end with the line."""
        self.lab.set_environment({"HSMKM_WORKERS_PROCESSES": str(self.processes)})
        self._worker = self.lab.stack.enter_context(Worker(open_party, self.lab.home("factory"), ACTOR))
        return self._worker


def lines(lab: Lab) -> Iterator[Line]:
    """Give a line for one worker, and one for two."""
    for processes, reach in ((1, 0.85), (2, 1.8)):
        yield Line(
            name=f"provision-{processes}",
            unit="meters",
            floor=FLOOR,
            ours=Factory(lab, processes).provision,
            base=partial(lab.loop, Loop("factory", "provision")),
            count=20_000,
            base_count=5_000,
            few=100,
            reach=reach,
            axis="workers",
            at=processes,
        )
