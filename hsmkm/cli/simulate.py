"""`hsmkm simulate`: virtual meters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hsmkm.dlms.agreement import AlgorithmIds
from hsmkm.errors import InputError
from hsmkm.simulator.behaviour import Activation, Fault, MeterSettings
from hsmkm.simulator.meter import Meter
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
    fault: Annotated[Fault | None, typer.Option(help="How the next new keys go wrong.")] = None,
    fault_count: Annotated[int, typer.Option(help="How many times the fault hits, -1 for all.")] = 1,
    fault_setup: Annotated[
        int | None, typer.Option(help="Number of the Security Setup that the fault hits; by default any.")
    ] = None,
    algorithm_id: Annotated[str, typer.Option(help="Prefix of key_agreement's AlgorithmID, hex.")] = "608574050803",
    *,
    ic_reset: Annotated[bool, typer.Option("--ic-reset", help="Counters restart when the GUEK changes.")] = False,
) -> None:
    """Serve a virtual meter for each state file.

    On the loopback, until SIGTERM or Ctrl-C.

    Prints READY and the ports on stdout; keys and counters are kept in the state files.
    """
    try:
        algorithms = AlgorithmIds(bytes.fromhex(algorithm_id))
    except ValueError:
        raise InputError("the prefix of an AlgorithmID is 12 hexadecimal digits") from None
    settings = MeterSettings(activate, ic_reset, fault, fault_count, fault_setup, algorithms=algorithms)
    serve([Meter(load(path), settings, save_to(path)) for path in states], port=port)
