"""`hsmkm worker`: a process that works off the campaigns of its party, on this machine or any other."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from hsmkm.campaign import lanes
from hsmkm.cli.campaign import Every, Threads, Workers, follow, lane_shape
from hsmkm.cli.campaign_progress import course
from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, talk, worker_starter
from hsmkm.store.campaign import Standing

if TYPE_CHECKING:
    from hsmkm.campaign import slices
    from hsmkm.steps import party
else:
    (slices,) = deferred("hsmkm.campaign", "slices")
    (party,) = deferred("hsmkm.steps", "party")

app = typer.Typer(help="Processes that work off campaigns.", no_args_is_help=True)


@app.callback()
def worker() -> None:
    """Processes that work off campaigns."""


@app.command()
def run(workers: Workers = 0, threads: Threads = 0, every: Every = 100) -> None:
    """Take slices of every campaign that runs, until SIGTERM or Ctrl-C.

    Any number of these may run, with PostgreSQL on any number of machines; each takes slices only of campaigns that
    were started with its version, party and token. A store or token that is gone for a while is waited for. Prints
    READY when it takes work.
    """
    shape = lane_shape(workers, threads)
    starter = worker_starter(party.open_party, frame().home, frame().actor, threads=shape[1])
    with (
        course("worker", dict.fromkeys(Standing, 0), every) as shown,
        lanes.Lanes(starter, shape, slices.work_any, lasting=True) as running,
    ):
        typer.echo("READY")
        sys.stdout.flush()
        follow(running, shown)
    if running.failure is not None:
        raise running.failure
    talk("stopped")
