"""`hsmkm campaign`: work over a fleet, limited, paced, taken over and reported."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.campaign import lanes
from hsmkm.campaign.selection import Query, parse_query
from hsmkm.campaign.terms import Limit, Terms, parse_rate
from hsmkm.campaign.window import Window
from hsmkm.cli.approved import Approval, named
from hsmkm.cli.campaign_progress import Course, course
from hsmkm.cli.deferred import deferred
from hsmkm.cli.ending import Interruption
from hsmkm.cli.frame import frame, party_worker, show, talk, worker_starter
from hsmkm.cli.reference import In
from hsmkm.cli.renew import BY_DEFAULT, By, key_roles
from hsmkm.cli.streamed import show_streamed
from hsmkm.errors import HsmkmError, InputError, PartlyDoneError
from hsmkm.store.campaign import CampaignState, Counts, Standing
from hsmkm.token.pool import Shape
from hsmkm.token.profile import load_profile

if TYPE_CHECKING:
    from hsmkm.campaign import control, slices
    from hsmkm.campaign import create as create_step
    from hsmkm.campaign.control import Status
    from hsmkm.steps import party
else:
    control, slices = deferred("hsmkm.campaign", "control", "slices")
    (create_step,) = deferred("hsmkm.campaign", "create")
    (party,) = deferred("hsmkm.steps", "party")

ALL = "all"
FEWEST_THREADS = 4
"""Lanes of a process where the token's profile asks for no more: most of a renewal is waiting for the meter."""

COLUMNS = ("campaign", "state", "meters", "done", "left", "failed", "unknown", "gave_up", "skipped", "reason")
REPORT_COLUMNS = ("meter", "state", "attempts", "next", "outcome")

app = typer.Typer(help="Renewals over many meters.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The campaign.")]
Workers = Annotated[int, typer.Option(help="Worker processes; 0: what suits the token.", min=0, max=64)]
Threads = Annotated[int, typer.Option(help="Meters that each process works on at once; 0: what suits.", min=0, max=64)]
Every = Annotated[
    int, typer.Option("--line-every", help="Away from a terminal, one JSON line per so many meters.", min=1)
]
Detach = Annotated[bool, typer.Option("--detach", help="Leave all work to `hsmkm worker run`.")]
Reason = Annotated[str, typer.Option(help="Why, for the audit log.")]


@app.command()
def create(
    name: Name,
    which: Annotated[str, typer.Argument(metavar="[all]", help="The word all: every meter.")] = "",
    kind: Annotated[str, typer.Option(help="What is done to each meter: renew.")] = "renew",
    select: Annotated[
        str, typer.Option(help="Query, such as: model=virtual suite=0 concentrator=dc-1 state=active age>90d.")
    ] = "",
    meters: Annotated[Path | None, typer.Option(help="File with one system title on each line.")] = None,
    *,
    keys: Annotated[str, typer.Option(help="As of hsmkm renew; by default the global keys.")] = "",
    association: In = "",
    by: Annotated[By, typer.Option(help="As of hsmkm renew.")] = By.KEY_TRANSFER,
    rate: Annotated[str, typer.Option(help="Most meters begun, such as 2/s, 30/min or 600/h, by all workers.")] = "",
    window: Annotated[str, typer.Option(help="Daily window, such as 22:00-05:00 or 22:00-05:00 Europe/Berlin.")] = "",
    attempts: Annotated[int, typer.Option(help="Attempts on a meter before it is given up.")] = 3,
    back_off: Annotated[float, typer.Option(help="Seconds to the second attempt; doubled for each further one.")] = 900,
    stop_after_failures: Annotated[
        str, typer.Option(help="Stop by itself at so many failed meters, or at a share such as 5%.")
    ] = "",
    slice_: Annotated[int, typer.Option("--slice", help="Meters that a worker claims together.")] = 100,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="List meters that cannot be worked on as skipped.")
    ] = False,
) -> None:
    """Choose the meters of a campaign and look at each; nothing is sent before it is started.

    Meters come from a query, from a file, or are all there are. One that is unknown, destroyed, spoken with now, not
    registered, without keys in force or of a model without settings is named, and then nothing is made; with
    --leave-out such meters are listed as skipped.
    """
    if [bool(select), meters is not None, which == ALL].count(True) != 1 or which not in ("", ALL):
        raise InputError("which meters is not clear", hint="give one of --select QUERY, --meters FILE, or the word all")
    terms = Terms(
        kind=kind,
        roles=key_roles(keys) if keys else BY_DEFAULT[by],
        association=association,
        by=by.value,
        rate=parse_rate(rate) if rate else None,
        window=Window.parse(window) if window else None,
        attempts=attempts,
        back_off=_seconds(back_off),
        stop=Limit.parse(stop_after_failures) if stop_after_failures else None,
        slice=slice_,
    ).checked()
    query = parse_query(select) if select else None
    said = f"select {select}" if select else f"file {meters}" if meters else ALL
    with party_worker() as worker:
        counts = worker.call(_create, name, terms, query, meters.resolve() if meters else None, leave_out, said)
    show([_row(name, CampaignState.CREATED, counts, "")], COLUMNS)


@app.command()
def start(
    name: Name,
    workers: Workers = 0,
    threads: Threads = 0,
    every: Every = 100,
    approval: Approval = "",
    *,
    detach: Detach = False,
) -> None:
    """Start a campaign and work on it here until it ends, pauses or stops.

    Its meters are looked at once more before the first start. A campaign that runs already gets these workers too.
    Ctrl-C ends them after the meters that they are at, and the campaign goes on with the same command.
    """
    with party_worker() as worker:
        begun = worker.call(control.start, name, named(approval))
    _go(begun, workers, threads, every, detach=detach)


@app.command()
def resume(
    name: Name, workers: Workers = 0, threads: Threads = 0, every: Every = 100, *, detach: Detach = False
) -> None:
    """Go on with a campaign that was paused, or that stopped by itself."""
    with party_worker() as worker:
        begun = worker.call(control.resume, name)
    _go(begun, workers, threads, every, detach=detach)


@app.command()
def pause(name: Name, reason: Reason = "") -> None:
    """Let every worker stop after the meters that it is at."""
    with party_worker() as worker:
        _show(worker.call(control.pause, name, reason))


@app.command()
def cancel(name: Name, reason: Reason = "") -> None:
    """End a campaign for good; meters that are not done stay in its report."""
    with party_worker() as worker:
        _show(worker.call(control.cancel, name, reason))


@app.command()
def status(name: Name) -> None:
    """Show where a campaign stands, and who works on it."""
    found = _status(name)
    _show(found)
    for holder, until in found.holders:
        talk(f"a slice is held by {holder}, unless it says no more, until {until.isoformat()}")


@app.command(name="list")
def list_campaigns() -> None:
    """List all campaigns."""
    from hsmkm.store import campaigns  # noqa: PLC0415 - the store loads for long, and other verbs leave it to workers

    with party.open_listing(frame().home) as store, store.read() as tx:
        found = [(item, campaigns.counts(tx, item.id)) for item in campaigns.listing(tx)]
    show([_row(item.name, item.state, counts, item.reason) for item, counts in found], COLUMNS)


@app.command()
def report(name: Name) -> None:
    """List every meter that is not done, and why; of a campaign of any size."""
    show_streamed(_not_done(name), REPORT_COLUMNS)


def _not_done(name: str) -> Iterator[dict[str, object]]:
    from hsmkm.store import campaigns  # noqa: PLC0415 - as above

    with party.open_listing(frame().home) as store:
        with store.read() as tx:
            campaign = campaigns.find(tx, name).id
        for meter in campaigns.every_not_done(store, campaign):
            again = meter.state in (Standing.FAILED, Standing.UNKNOWN)
            yield {
                "meter": meter.title,
                "state": meter.state.value,
                "attempts": meter.attempts,
                "next": meter.not_before.isoformat() if again else None,
                "outcome": meter.outcome or None,
            }


def _go(begun: Status, workers: int, threads: int, every: int, *, detach: bool) -> None:
    name = begun.campaign.name
    if detach:
        _show(begun)
        return
    shape = lane_shape(workers, threads)
    starter = worker_starter(party.open_party, frame().home, frame().actor, threads=shape[1])
    with (
        course(name, begun.counts, every) as shown,
        lanes.Lanes(starter, shape, slices.work, name) as running,
    ):
        ending = follow(running, shown)
    found = _status(name)
    _show(found)
    if ending.asked:
        talk(f"ended after the meters that were under way; go on with: hsmkm campaign start {name}")
    ending.end()
    _judge(found, running.failure)


def follow(running: lanes.Lanes, shown: Course) -> Interruption:
    """Show what lanes tell until they end; the first Ctrl-C lets each end its meter, the second ends them at once."""
    ending = Interruption(running.stop)
    with ending.listening():
        for event in running.events():
            shown.take(event)
    return ending


def lane_shape(workers: int, threads: int) -> tuple[int, int]:
    """Say how many processes there are, and how many lanes in each, where the command leaves it to the settings."""
    settings = frame().settings()
    shape = Shape.of(settings.workers, load_profile(settings.token.profile))
    usual = settings.workers.threads or max(shape.threads, FEWEST_THREADS)
    return workers or settings.workers.processes or 1, threads or usual


def _judge(found: Status, failure: HsmkmError | None) -> None:
    """Raise what ended the work before its end, PartlyDoneError where meters are not done."""
    name, state = found.campaign.name, found.campaign.state
    if state is CampaignState.RUNNING and failure is not None:
        raise failure
    left = sum(found.counts.values()) - found.counts[Standing.DONE]
    if state is CampaignState.FINISHED and not left:
        return
    why = f": {found.campaign.reason}" if found.campaign.reason else ""
    hint = f"see why with: hsmkm campaign report {name}"
    if state in (CampaignState.PAUSED, CampaignState.STOPPED):
        hint += f"; go on with: hsmkm campaign resume {name}"
    raise PartlyDoneError(f"campaign {name} is {state}{why}; {left} meters are not done", hint=hint)


def _create(
    opened: party.Party,
    name: str,
    terms: Terms,
    query: Query | None,
    file: Path | None,
    leave_out: bool,
    said: str,
) -> Counts:
    return create_step.create(opened, create_step.Asked(name, terms, query, file, leave_out), said)


def _status(name: str) -> Status:
    from hsmkm.store import campaigns  # noqa: PLC0415 - as above

    with party.open_listing(frame().home) as store, store.read() as tx:
        return control.status(tx, campaigns.find(tx, name))


def _show(found: Status) -> None:
    show([_row(found.campaign.name, found.campaign.state, found.counts, found.campaign.reason)], COLUMNS)


def _row(name: str, state: CampaignState, counts: Counts, reason: str) -> dict[str, object]:
    return {
        "campaign": name,
        "state": state.value,
        "meters": sum(counts.values()),
        "done": counts[Standing.DONE],
        "left": counts[Standing.WAITING] + counts[Standing.CLAIMED],
        "failed": counts[Standing.FAILED],
        "unknown": counts[Standing.UNKNOWN],
        "gave_up": counts[Standing.GAVE_UP],
        "skipped": counts[Standing.SKIPPED],
        "reason": reason or None,
    }


def _seconds(value: float) -> timedelta:
    try:
        return timedelta(seconds=value)
    except (OverflowError, ValueError) as error:
        raise InputError(f"{value} is no number of seconds", hint="such as --back-off 900") from error
