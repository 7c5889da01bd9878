"""`hsmkm store`: the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, party_worker, show
from hsmkm.errors import IntegrityError

if TYPE_CHECKING:
    from hsmkm.steps import attest
else:
    (attest,) = deferred("hsmkm.steps", "attest")

app = typer.Typer(help="The store: its integrity and its schema.", no_args_is_help=True)


@app.command()
def check() -> None:
    """Check every row against its MAC.

    Also looks for keys that are used twice; exit code 6 for problems.
    """
    with party_worker() as worker:
        problems = worker.call(attest.check_store)
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
    attest.upgrade_store(url)
    show([{"store": url, "result": "up to date"}], ("store", "result"))
