"""Takes a million suite-0 meters through the steps to a utility, and tells what they and a single one then cost.

A factory provisions them in orders and exports them in packages; the utility imports them and registers them in advance
behind a concentrator that relays; each receipt goes back. After the first 10,000 and after all of them the costs of a
look-up, a renewal and an APDU are measured, at meters of a simulated fleet.

A run that ended early goes on when it is given again with the same folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import million_work as work
from million_lab import ACTOR, Lab, LabError, Plan, Record, peaks, spent
from million_sizes import meter_octets, sizes

from hsmkm.cli import frame
from hsmkm.cli.meter import show_meter
from hsmkm.steps.deliver import accept_receipt
from hsmkm.steps.exporting import export
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_file
from hsmkm.token.workers import Worker
from tests import postgresql
from tests.realm import title_of

FEW = 10_000
"""So many meters there are when a single one's costs are measured first."""

SAMPLE, APDUS = 40, 200
RELAY = "other-concentrator"
TENTH = 10
TICK = 1 / os.sysconf("SC_CLK_TCK")
"""What processor time is counted in; less is not seen."""

Step = Callable[[Lab, Worker[Party], int], Sequence[object]]
"""Takes an order, by its number, one step further, and gives what it made."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A step that every order takes: its name, whose it is, and what it does."""

    name: str
    party: str
    step: Step


def _provision(lab: Lab, worker: Worker[Party], order: int) -> Sequence[object]:
    path = lab.folder / "order.csv"
    lines = (f"MMM,{serial},virtual,0\n" for serial in lab.plan.orders[order])
    path.write_text("flag,serial,model,suite\n" + "".join(lines))
    return [worker.call(provision, path, "line").order]


def _export(lab: Lab, worker: Worker[Party], order: int) -> Sequence[object]:
    (number,) = lab.made("provision", order)
    return [worker.call(export, "delivery", "utility", (), number).path]


def _import(lab: Lab, worker: Worker[Party], order: int) -> Sequence[object]:
    return [worker.call(receive_file, Path(path)).path for path in lab.made("export", order)]


def _accept(lab: Lab, worker: Worker[Party], order: int) -> Sequence[object]:
    return _receipts(lab, worker, "import", order)


def _register(lab: Lab, worker: Worker[Party], order: int) -> Sequence[object]:
    path = lab.folder / "places.csv"
    lines = (f"{title_of(serial)},10.0.0.1:4059\n" for serial in lab.plan.orders[order])
    path.write_text("".join(lines))
    return worker.call(work.told, path, RELAY)


def _take(lab: Lab, worker: Worker[Party], order: int) -> Sequence[object]:
    return [worker.call(receive_file, Path(path)).path for path in lab.made("register", order)]


def _confirm(lab: Lab, worker: Worker[Party], order: int) -> Sequence[object]:
    return _receipts(lab, worker, "concentrator takes", order)


def _receipts(lab: Lab, worker: Worker[Party], phase: str, order: int) -> Sequence[object]:
    for path in lab.made(phase, order):
        worker.call(accept_receipt, Path(path).read_bytes())
    return []


PHASES = (
    Phase("provision", "factory", _provision),
    Phase("export", "factory", _export),
    Phase("import", "utility", _import),
    Phase("factory accepts", "factory", _accept),
    Phase("register", "utility", _register),
    Phase("concentrator takes", RELAY, _take),
    Phase("utility accepts", "utility", _confirm),
)


def stages(plan: Plan) -> list[int]:
    """Say after how many orders the costs of a meter are measured: at 10,000 meters (or one order), and at all."""
    whole = len(plan.orders)
    few = FEW // plan.order
    return sorted({few if few < whole else 1, whole})


def run_phase(lab: Lab, phase: Phase, orders: int) -> None:
    """Take what is left of the first orders through a phase, in one worker of the party."""
    done = {record["order"] for record in lab.of(phase.name)}
    left = [number for number in range(orders) if number not in done]
    if not left:
        return
    with lab.party(phase.party) as worker:
        for order in left:
            began, before = time.monotonic(), spent(worker)
            made = list(map(str, phase.step(lab, worker, order)))
            seconds, cpu = time.monotonic() - began, spent(worker) - before
            party, hands = peaks(worker)
            figures = {"phase": phase.name, "order": order, "meters": len(lab.plan.orders[order])}
            lab.note(figures | {"seconds": seconds, "cpu": cpu, "party_mb": party, "workers_mb": hands, "made": made})
            rate = figures["meters"] / seconds
            say(f"{phase.name} {order + 1} of {len(lab.plan.orders)}: {rate:,.0f} meters/s, {party:.0f} MB")


def weigh(lab: Lab, orders: int) -> None:
    """Note how large a meter and its key set are in the factory's store, as they were made."""
    if not any(record["orders"] == orders for record in lab.of("octets")):
        meters = sum(map(len, lab.plan.orders[:orders]))
        lab.note({"phase": "octets", "orders": orders, "of_meter": meter_octets(lab.realm, "factory") / meters})


def measure(lab: Lab, orders: int) -> None:
    """Measure what a single meter costs, and how large everything is, when so many orders are through."""
    meters = sum(map(len, lab.plan.orders[:orders]))
    if any(record["meters"] == meters for record in lab.of("costs")):
        return
    tried = len(lab.of("fleet"))
    serials = list(lab.plan.orders[orders - 1])
    sample = serials[SAMPLE * tried :][:SAMPLE] or serials[:SAMPLE]
    lab.note({"phase": "fleet", "first": sample[0]})
    spread = [title_of(1 + number * meters // SAMPLE) for number in range(SAMPLE)]
    costs = {
        "look-up by title": _shown(lab, spread),
        "look-up by serial number": _shown(lab, [str(int(title[6:], 16)) for title in spread]),
    }
    titles = [title_of(serial) for serial in sample]
    with lab.fleet(sample) as places, lab.party("utility") as worker:
        worker.call(work.put_in_force, places)
        costs["look-up of holders"] = worker.call(work.holders_seconds, spread)
        costs["renewal"] = worker.call(work.renewal_seconds, titles)
        costs["association with one exchange"] = worker.call(work.exchange_seconds, titles)
        costs["APDU"] = worker.call(work.apdu_seconds, titles[0], APDUS)
    medians = {name: statistics.median(values) for name, values in costs.items()}
    lab.note({"phase": "costs", "meters": meters, "seconds": medians, "sizes": sizes(lab.realm)})
    say(f"at {meters:,} meters: " + ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in medians.items()))


def _shown(lab: Lab, names: Sequence[str]) -> list[float]:
    """Look meters up as `hsmkm meter show` does; how long each took."""
    frame.enter(frame.Frame(lab.realm.home("utility"), frame.Output.JSON, ACTOR))
    found = []
    for name in names:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            began = time.perf_counter()
            show_meter(name)
            found.append(time.perf_counter() - began)
    return found


def figures(lab: Lab) -> Record:
    """Put together what the journal says."""
    phases = [_figures_of(phase, lab.of(phase.name)) for phase in PHASES]
    return {
        "machine": lab.records[0]["machine"],
        "store": lab.plan.store,
        "meters": lab.plan.meters,
        "order": lab.plan.order,
        "phases": phases,
        "meter_octets": round(lab.of("octets")[-1]["of_meter"]),
        "costs": [{name: record[name] for name in ("meters", "seconds", "sizes")} for record in lab.of("costs")],
    }


def _figures_of(phase: Phase, records: Sequence[Record]) -> Record:
    tenth = max(1, len(records) // TENTH)
    growth = {what: _cost(records[-tenth:], what) / _cost(records[:tenth], what) for what in ("seconds", "cpu")}
    return {
        "name": phase.name,
        "party": phase.party,
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "rate": round(1 / _cost(records, "seconds"), 1),
        "growth": round(growth["seconds"], 3),
        "cpu_us": round(1e6 * _cost(records, "cpu")),
        "cpu_growth": round(growth["cpu"], 3),
        "first_party_mb": records[0]["party_mb"],
        "party_mb": max(record["party_mb"] for record in records),
        "workers_mb": max(record["workers_mb"] for record in records),
    }


def _cost(records: Sequence[Record], what: str) -> float:
    return max(sum(record[what] for record in records), TICK) / sum(record["meters"] for record in records)


def say(text: str) -> None:
    """Tell on stderr how far it is."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def folder_of(options: argparse.Namespace) -> Iterator[Path]:
    """Give the folder of the run: the one that is named, which stays, or one that goes at the end."""
    with ExitStack() as stack:
        name = options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="hsmkm-million-"))
        folder = Path(name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if options.postgresql:
            folder.chmod(0o711)  # the server is another user's, and its files lie below
            os.environ |= {postgresql.CHOICE: "postgresql", postgresql.PLACE: str(folder / "postgresql")}
        yield folder


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/million", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--meters", type=int, default=1_000_000, metavar="N", help="so many meters (1000000)")
    parser.add_argument("--order", type=int, default=10_000, metavar="N", help="meters of an order (10000, the most)")
    parser.add_argument(
        "--postgresql", action="store_true", help="keep the stores in a PostgreSQL that is started for it"
    )
    parser.add_argument("--folder", metavar="F", help="keep everything in this folder, and go on from what is there")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/performance.md")
    options = parser.parse_args(arguments)
    if not 0 < options.order <= FEW or options.meters < 1:
        parser.error(f"--meters is 1 or more, and --order from 1 to {FEW}")
    return options


def main(arguments: list[str]) -> int:
    """Do what is left of the run, and print its figures."""
    options = parsed(arguments)
    plan = Plan(options.meters, options.order, "PostgreSQL" if options.postgresql else "SQLite")
    with folder_of(options) as folder:
        try:
            lab = Lab(folder, plan)
        except LabError as error:
            say(f"error: {error}\nhint: give another --folder, or the same options")
            return 2
        for orders in stages(plan):
            for phase in PHASES:
                run_phase(lab, phase, orders)
                if phase is PHASES[0]:
                    weigh(lab, orders)
            measure(lab, orders)
        found = figures(lab)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if options.write:
        from million_write import write  # noqa: PLC0415 - only where it is asked for

        write(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
