"""`hsmkm store`: the database."""

from __future__ import annotations

import typer

from hsmkm.cli.frame import frame, party_worker, show
from hsmkm.errors import IntegrityError
from hsmkm.steps.attest import check_store, upgrade_store

app = typer.Typer(help="The store: its integrity and its schema.", no_args_is_help=True)


@app.command()
def check() -> None:
    """Check every row against its MAC.

    Also looks for keys that are used twice; exit code 6 for problems.
    """
    with party_worker() as worker:
        problems = worker.call(check_store)
    show(
        [{"table": item.table, "row": item.row, "problem": item.text} for item in problems], ("table", "row", "problem")
    )
    if problems:
        raise IntegrityError(
            f"the store has {len(problems)} problem(s)", "restore it from a backup, or find out who did this"
        )


@app.command()
def upgrade() -> None:
    """Bring the store to this program's schema."""
    url = frame().settings().store_url
    upgrade_store(url)
    show([{"store": url, "result": "up to date"}], ("store", "result"))
