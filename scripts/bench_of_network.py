"""A network HSM, emulated: SoftHSM behind a shim that holds each call back for a millisecond, as a round trip does.

The floor is the C loop with 32 threads, which makes the same calls: the keys of 16 meters share a session that is
closed instead of destroying them, which saves four round trips a meter. A call is held back before it reaches SoftHSM,
whose lock is free meanwhile. Our sessions are in as many worker processes as the machine has cores, two here: 32
threads of one interpreter wait for its lock longer than for the token.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_lab import Lab, Loop, children_of, proportional_mb
from bench_line import Line

from hsmkm.steps.party import Party, open_party
from hsmkm.steps.provision import provision
from hsmkm.token.workers import Worker
from tests.faults.shim import build

ACTOR = "bench"
DELAY_US = 1000
SESSIONS = (1, 2, 4, 8, 16, 32)
PROCESSES = 2
MOST = SESSIONS[-1]
BATCH = 16
RATE = 60
"""About how many meters a session provisions in a second: 14 calls each, and the batch's own."""


class DistantFactory:
    """A factory whose token is far away, with so many sessions of its worker processes."""

    def __init__(self, lab: Lab, sessions: int) -> None:
        self.lab = lab
        self.sessions = sessions
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
        processes = min(PROCESSES, self.sessions)
        threads = self.sessions // processes
        workers = {"PROCESSES": processes, "THREADS": threads, "BATCH": 2 if self.lab.sample else BATCH}
        settings = {f"HSMKM_WORKERS_{name}": str(value) for name, value in workers.items()}
        self.lab.set_environment(distant() | settings)
        self._worker = self.lab.stack.enter_context(Worker(open_party, self.lab.home("factory"), ACTOR))
        return self._worker

    def memory(self) -> dict[str, float]:
        """Tell the memory of the workers that have the sessions, and of the party with its store, in megabytes."""
        worker = self._worker or self._started()
        owner = worker.call(process)
        hands = children_of(owner)
        return {"MB of the sessions": sum(map(proportional_mb, hands)), "MB of the store": proportional_mb(owner)}


def process(_party: Party) -> int:
    """Name the party's process."""
    return os.getpid()


def distant() -> dict[str, str]:
    """Put the shim before the token, in the environment."""
    return build().environment() | {"SHIM_DELAY_US": str(DELAY_US)}


def loop(lab: Lab, count: int) -> float:
    """Let the C loop provision with 32 threads."""
    environment = distant()
    shim = environment["HSMKM_TOKEN_MODULE"]
    return lab.loop(Loop("factory", "provision", MOST, BATCH, module=shim, environment=environment), count)


def lines(lab: Lab) -> Iterator[Line]:
    """Give a line for each number of sessions, in a sample for one; only the last has a figure to reach."""
    for sessions in SESSIONS[1:2] if lab.sample else SESSIONS:
        factory = DistantFactory(lab, sessions)
        yield Line(
            name=f"network-{sessions}",
            unit="meters",
            floor=f"a C loop of the same calls with {MOST} threads",
            ours=factory.provision,
            base=partial(loop, lab),
            count=max(4 * sessions * RATE, 400) // BATCH * BATCH,
            base_count=MOST * 12 * BATCH,
            few=2 * sessions + 2,
            reach=0.85 if sessions == MOST else None,
            axis="sessions",
            at=sessions,
            extra=factory.memory,
        )
