"""`hsmkm audit`: who did what, and the proof that nobody rewrote it."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, inspecting_worker, party_worker, show
from hsmkm.cli.streamed import show_streamed
from hsmkm.errors import IntegrityError

if TYPE_CHECKING:
    from hsmkm.steps import attest, party
    from hsmkm.store import audit
else:
    attest, party = deferred("hsmkm.steps", "attest", "party")
    (audit,) = deferred("hsmkm.store", "audit")

app = typer.Typer(help="The audit log: a chain of hashes with signed checkpoints.", no_args_is_help=True)
COLUMNS = ("sequence", "time", "actor", "action", "subject", "detail")


@app.command()
def log(
    after: Annotated[int, typer.Option(help="Begin behind this sequence.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 100,
    subject: Annotated[str | None, typer.Option(help="Only this meter, party or package.")] = None,
) -> None:
    """List audit records, oldest first."""
    with party.open_listing(frame().home) as store:
        found = islice(audit.every(store, after=after, subject=subject), limit or None)
        rows = ({name: getattr(item, name) for name in COLUMNS} | {"detail": json.dumps(item.detail)} for item in found)
        show_streamed(rows, COLUMNS)


@app.command()
def verify(
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A signed checkpoint kept elsewhere; repeatable.")
    ] = None,
) -> None:
    """Verify the chain, checkpoints and MACs.

    Exit code 6 for problems.
    """
    with inspecting_worker() as worker:
        problems = worker.call(attest.verify_audit, tuple(path.resolve() for path in checkpoint or ()))
    show(
        [{"table": item.table, "row": item.row, "problem": item.text} for item in problems], ("table", "row", "problem")
    )
    if problems:
        raise IntegrityError(f"{len(problems)} problem(s), the first in {problems[0]}", "compare with a backup")


@app.command()
def checkpoint(out: Annotated[Path, typer.Option(help="File to write; keep it elsewhere.")]) -> None:
    """Sign the newest audit record.

    With it, a chain that was cut short is found out.
    """
    with party_worker() as worker:
        sequence = worker.call(attest.checkpoint, out.resolve())
    show([{"sequence": sequence, "checkpoint": out}], ("sequence", "checkpoint"))
