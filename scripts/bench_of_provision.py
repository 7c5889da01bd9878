"""Provisioning: key sets of suite-0 meters, durable, with their injection package, beside the C loop's 18 calls."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial

from bench_lab import Lab, Loop, children_of, cpu_seconds
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
        self._cpu_us = {"party": 0.0, "workers": 0.0}

    def provision(self, meters: int) -> float:
        """Provision an order of so many meters; the seconds from order file to injection package."""
        worker = self._worker or self._started()
        order = self.lab.order(meters)
        before = self._spent(worker)
        began = time.monotonic()
        worker.call(provision, order, "line")
        seconds = time.monotonic() - began
        after = self._spent(worker)
        self._cpu_us = {name: 1e6 * (after[name] - before[name]) / meters for name in after}
        return seconds

    def _started(self) -> Worker[Party]:
        """Start it, to end with the line."""
        self.lab.set_environment({"HSMKM_WORKERS_PROCESSES": str(self.processes)})
        self._worker = self.lab.stack.enter_context(Worker(open_party, self.lab.home("factory"), ACTOR))
        return self._worker

    @staticmethod
    def _spent(worker: Worker[Party]) -> dict[str, float]:
        party = worker.call(process)
        return {"party": cpu_seconds(party), "workers": sum(map(cpu_seconds, children_of(party)))}

    def cpu(self) -> dict[str, float]:
        """Tell the microseconds of processor time a meter took in the last round, ours and the C loop's."""
        named = self._cpu_us | {"C loop": self.lab.loop_cpu_us}
        return {f"us of CPU in the {name}": round(value) for name, value in named.items()}


def process(_party: Party) -> int:
    """Name the party's process."""
    return os.getpid()


def lines(lab: Lab) -> Iterator[Line]:
    """Give a line for one worker, and one for two."""
    for processes, reach in ((1, 0.85), (2, 1.8)):
        factory = Factory(lab, processes)
        yield Line(
            name=f"provision-{processes}",
            unit="meters",
            floor=FLOOR,
            ours=factory.provision,
            base=partial(lab.loop, Loop("factory", "provision")),
            count=20_000,
            base_count=5_000,
            few=100,
            reach=reach,
            axis="workers",
            at=processes,
            extra=factory.cpu,
        )
