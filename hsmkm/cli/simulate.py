"""`hsmkm simulate`: virtual meters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hsmkm.dlms.agreement import AlgorithmIds
from hsmkm.errors import InputError
from hsmkm.simulator.behaviour import Activation, Fault, MeterSettings
from hsmkm.simulator.fate import Chances
from hsmkm.simulator.fleet import MOST_METERS, Fleet, FleetSettings
from hsmkm.simulator.fleet_server import FleetFiles, serve_fleet
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


@app.command()
def fleet(
    first: Annotated[Path, typer.Argument(help="State file of the first meter; the titles of the others follow.")],
    meters: Annotated[int, typer.Option(min=1, max=MOST_METERS, help="So many meters.")] = 100_000,
    port: Annotated[int, typer.Option(help="Port of all meters; 0 takes a free one.")] = 0,
    places: Annotated[Path | None, typer.Option(help="Write a line METER,HOST:PORT for each meter.")] = None,
    *,
    seed: Annotated[int, typer.Option(help="What decides which exchange meets what.")] = 1,
    loss: Annotated[float, typer.Option(help="Chance that an exchange is lost with its connection.")] = 0.0,
    silence: Annotated[float, typer.Option(help="Chance that an answer is lost and the connection stays.")] = 0.0,
    reboot: Annotated[float, typer.Option(help="Chance that the meter reboots at an exchange.")] = 0.0,
    fault: Annotated[float, typer.Option(help="Chance that new keys go wrong, in any way of a meter's faults.")] = 0.0,
    delay: Annotated[tuple[float, float], typer.Option(help="Least and most milliseconds to an answer.")] = (0.0, 0.0),
    activate: Annotated[
        Activation, typer.Option(help="When a transferred key takes effect.")
    ] = Activation.AFTER_RESPONSE,
    states: Annotated[Path | None, typer.Option(help="File to go on from, and to keep the meters in.")] = None,
    report: Annotated[Path | None, typer.Option(help="File for what befell which meter; also at SIGUSR1.")] = None,
    ic_reset: Annotated[bool, typer.Option("--ic-reset", help="Counters restart when the GUEK changes.")] = False,
    mixed: Annotated[bool, typer.Option("--mixed", help="Each meter has its own --activate and --ic-reset.")] = False,
    reset_at_reboot: Annotated[
        bool, typer.Option("--reset-at-reboot", help="Counters restart when a meter reboots.")
    ] = False,
) -> None:
    """Serve a fleet of virtual meters from one process.

    On the loopback until SIGTERM or Ctrl-C: the n-th meter at 127.a.b.c, where a.b.c is n in three octets.

    Prints READY and the port on stdout. The chances are of 0 to 1, and the seed decides by meter and exchange.
    """
    chances = Chances(loss, silence, reboot, fault, (delay[0] / 1000, delay[1] / 1000))
    behaviour = MeterSettings(activate, ic_reset)
    made = Fleet(load(first), FleetSettings(meters, seed, chances, behaviour, mixed, reset_at_reboot))
    serve_fleet(made, port, FleetFiles(places, report, states))
