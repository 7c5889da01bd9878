"""What a meter costs when there are many already: the same provisioning into a store that grows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bench_lab import Lab, Loop
from bench_line import Line
from bench_of_provision import FLOOR, Factory

SIZES = (10_000, 40_000, 70_000, 100_000)
FEW_SIZES = (100, 200)
AT_ONCE = 10_000


def grown(lab: Lab, factory: Factory, size: int, meters: int) -> float:
    """Let the store grow to so many meters, then provision more; the seconds that these took."""
    while (missing := size - lab.provisioned) > 0:
        factory.provision(min(missing, AT_ONCE))
    return factory.provision(meters)


def lines(lab: Lab) -> Iterator[Line]:
    """Give a line for each size of the store; all are only shown."""
    for size in FEW_SIZES if lab.sample else SIZES:
        yield Line(
            name=f"fleet-{size}",
            unit="meters",
            floor=FLOOR,
            ours=partial(grown, lab, Factory(lab, 1), size),
            base=partial(lab.loop, Loop("factory", "provision")),
            count=AT_ONCE,
            base_count=5_000,
            few=20,
            axis="meters in the store",
            at=size,
            warm_up=False,
            most_rounds=1,
        )
