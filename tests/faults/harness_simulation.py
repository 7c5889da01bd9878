"""A campaign in 10,000 worlds, each made by a seed: what a meter can hold is durable, and no IV is used twice.

A seed that fails prints itself; `scripts/faults simulation --sample 1 --seed SEED` replays it alone.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from hsmkm.link.client import Client
from hsmkm.steps import renew
from hsmkm.steps.renew import Work
from hsmkm.steps.stages import Stage
from hsmkm.store import counters, key_sets
from hsmkm.store.key_set import KeySet
from hsmkm.store.store import Transaction
from tests.faults.broken import counters_without_commit
from tests.faults.report import Report
from tests.faults.simulation import Template, runs_on

SEEDS = 10_000
CONTROL_SEEDS = 8
CHUNK = 25
MEMORY = Path("/dev/shm")  # noqa: S108 - a place in memory; the folder made there is ours alone


def run(sample: int | None, seed: int, processes: int | None = None) -> Report:
    """Run so many seeds from this one on, 10,000 without a sample, and then the broken variants with a few."""
    last = seed + (sample or SEEDS)
    chunks = [(begin, min(begin + CHUNK, last)) for begin in range(seed, last, CHUNK)]
    most = min(processes or os.cpu_count() or 1, len(chunks))
    with folder() as place:
        template = Template.make(place)
        if most == 1:
            found = [_chunk(template, chunk) for chunk in chunks]
            controls = [_control(template, name) for name in VARIANTS]
        else:
            with ProcessPoolExecutor(most, multiprocessing.get_context("spawn")) as pool:
                waiting = [pool.submit(_control, template, name) for name in VARIANTS]
                found = list(pool.map(_chunk, [template] * len(chunks), chunks))
                controls = [one.result() for one in waiting]
    hits = sum(count for count, _ in found)
    violations = tuple(text for _, texts in found for text in texts)
    return Report("simulation", hits, violations, sum(controls) if all(controls) else 0)


@contextmanager
def folder() -> Iterator[Path]:
    """Give a folder for the databases, in memory where there is such a place."""
    made = Path(tempfile.mkdtemp(prefix="hsmkm-simulation-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def _own(template: Template) -> Path:
    """Give a folder for the databases of this process."""
    own = template.folder / str(os.getpid())
    own.mkdir(exist_ok=True)
    return own


def _chunk(template: Template, seeds: tuple[int, int]) -> tuple[int, list[str]]:
    """Run seeds in this process: how much befell them, and what was violated."""
    worlds = [runs_on(template, _own(template), seed) for seed in range(*seeds)]
    return sum(world.befell.total() for world in worlds), [text for world in worlds for text in world.violations]


@contextmanager
def counters_reserved_without_a_commit() -> Iterator[None]:
    """Break the reservation of counters: a block is handed out and never written."""
    reserving = ("reserve", "reserve_more")
    with ExitStack() as stack:
        for name in reserving:
            stack.enter_context(patch.object(counters, name, getattr(counters, name)))
        counters_without_commit()
        yield


@contextmanager
def keys_stored_after_sending() -> Iterator[None]:
    """Break a renewal's order: the fresh keys are stored when the meter has said yes to them."""
    send, add = renew._send, key_sets.add
    waiting: list[KeySet] = []

    def late(_tx: Transaction, key_set: KeySet) -> None:
        waiting.append(key_set)

    def send_and_store(work: Work, client: Client, stage: Stage) -> None:
        send(work, client, stage)
        with work.party.store.begin("late", work.title, {}) as tx:
            for key_set in waiting:
                add(tx, replace(key_set, batch=tx.sequence))
        waiting.clear()

    with patch.object(renew, "_send", send_and_store), patch.object(key_sets, "add", late):
        yield


VARIANTS: Mapping[str, Callable[[], object]] = {
    "used twice": counters_reserved_without_a_commit,
    "not durable": keys_stored_after_sending,
}
"""By what a world says of each."""


def _control(template: Template, said: str) -> int:
    """Count the worlds in which a broken variant is found out for what it is."""
    with VARIANTS[said]():  # type: ignore[attr-defined]
        worlds = (runs_on(template, _own(template), seed) for seed in range(10**6, 10**6 + CONTROL_SEEDS))
        return sum(any(said in text for text in world.violations) for world in worlds)
