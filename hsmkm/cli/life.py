"""`hsmkm meter`, its second half: what becomes of meters and their keys after they are in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.approved import Approval, named
from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import party_worker, show, talk
from hsmkm.cli.outcomes import show_outcomes
from hsmkm.cli.renew import meter_names
from hsmkm.errors import InputError

if TYPE_CHECKING:
    from hsmkm.steps import destroy as destroy_step
    from hsmkm.steps import life
    from hsmkm.steps import transfer as transfer_step
else:
    destroy_step, life, transfer_step = deferred("hsmkm.steps", "destroy", "life", "transfer")

app = typer.Typer()
Meters = Annotated[list[str] | None, typer.Argument(help="System titles or serial numbers.")]
File = Annotated[Path | None, typer.Option("--list", help="File with one meter on each line.")]


@app.command()
def compromise(
    meters: Meters = None,
    file: File = None,
    reason: Annotated[str, typer.Option(help="What happened, for the audit log.")] = "declared by hand",
) -> None:
    """Declare that somebody knows the keys of meters.

    Nothing is read under them any more; they carry only the key_transfer that replaces them, which waits for
    `hsmkm renew --urgent`. Broadcast groups are left, and renewed too.
    """
    names = meter_names(meters, file)
    with party_worker() as worker:
        outcomes = worker.call(life.compromise, names, reason)
    show_outcomes(outcomes)


@app.command()
def suspend(meters: Meters = None, file: File = None) -> None:
    """Speak with meters no more until they are resumed."""
    names = meter_names(meters, file)
    with party_worker() as worker:
        outcomes = worker.call(life.suspend, names)
    show_outcomes(outcomes)


@app.command()
def resume(meters: Meters = None, file: File = None) -> None:
    """Take suspended meters up again."""
    names = meter_names(meters, file)
    with party_worker() as worker:
        outcomes = worker.call(life.resume, names)
    show_outcomes(outcomes)


@app.command()
def reassign(
    meter: Annotated[str, typer.Argument(help="System title or serial number.")],
    concentrator: Annotated[str, typer.Option(help="Party name of the new concentrator.")],
    address: Annotated[str, typer.Option(help="Where it reaches the meter, host:port.")],
    wait: Annotated[int, typer.Option(help="Seconds to wait for each of its receipts.")] = 60,
) -> None:
    """Put a meter behind another concentrator.

    The former one is told, and all that it was given is renewed.
    """
    with party_worker() as worker:
        outcomes = worker.call(life.reassign, [(meter, address)], concentrator, wait)
    show_outcomes(outcomes)


@app.command()
def transfer(
    to: Annotated[str, typer.Option(help="Party name of the utility that owns them from now on.")],
    meters: Meters = None,
    file: File = None,
    approval: Approval = "",
) -> None:
    """Give meters to another utility.

    All their keys go in a package for it; nothing is spoken with them from then on, and its receipt makes them its own.
    """
    names = meter_names(meters, file)
    with party_worker() as worker:
        outcomes = worker.call(transfer_step.transfer, names, to, named(approval))
    show_outcomes(outcomes)


@app.command()
def destroy(
    meters: Meters = None,
    file: File = None,
    approval: Approval = "",
    *,
    due: Annotated[
        bool, typer.Option("--due", help="In place of meters: copies of what was given away, when their day has come.")
    ] = False,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="In place of meters: clear what an earlier one left in the files of the store."),
    ] = False,
) -> None:
    """Destroy all keys of meters for good.

    They leave the store and its files; a signed record in HOME/records says which, and `hsmkm audit verify` looks for
    it.
    """
    if (due + sweep + bool(meters or file)) != 1:
        raise InputError("what is to be destroyed is not said", hint="name meters, or give --due or --sweep alone")
    with party_worker() as worker:
        if sweep:
            worker.call(destroy_step.sweep)
            show([{"store": "swept"}], ("store",))
            return
        outcomes = (
            worker.call(destroy_step.destroy_due, named(approval))
            if due
            else worker.call(destroy_step.destroy, meter_names(meters, file), named(approval))
        )
    if not outcomes:
        talk("no keys are due for destruction")
    show_outcomes(outcomes)
