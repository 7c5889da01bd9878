"""`hsmkm simulate`: virtual meters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hsmkm.simulator.meter import Activation, Fault, Meter, MeterSettings
from hsmkm.simulator.server import serve
from hsmkm.simulator.state import load, save_to

app = typer.Typer(help="Virtual meters, for trials and tests.", no_args_is_help=True)


@app.command()
def meter(
    states: Annotated[list[Path], typer.Argument(help="State files (JSON, mode 0600): title, suite, keys, counters.")],
    port: Annotated[int, typer.Option(help="Port of the first; the others follow. 0 takes free ones.")] = 0,
    activate: Annotated[
        Activation, typer.Option(help="When a transferred key takes effect.")
    ] = Activation.AFTER_RESPONSE,
    fault: Annotated[Fault | None, typer.Option(help="How the next key transfers go wrong.")] = None,
    fault_count: Annotated[int, typer.Option(help="How many key transfers the fault hits, -1 for all.")] = 1,
    *,
    ic_reset: Annotated[bool, typer.Option("--ic-reset", help="Counters restart when the GUEK changes.")] = False,
) -> None:
    """Serve a virtual meter for each state file.

    On the loopback, until SIGTERM or Ctrl-C.

    Prints READY and the ports on stdout; keys and counters are kept in the state files.
    """
    settings = MeterSettings(activate=activate, ic_reset=ic_reset, fault=fault, fault_count=fault_count)
    serve([Meter(load(path), settings, save_to(path)) for path in states], port=port)
