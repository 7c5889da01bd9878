"""`hsmkm store`: the database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.approved import Approval, named
from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, inspecting_worker, party_worker, show, talk, worker_starter
from hsmkm.errors import IntegrityError
from hsmkm.token.workers import Worker

if TYPE_CHECKING:
    from hsmkm.steps import attest, setup
    from hsmkm.steps import backup as archives
    from hsmkm.steps import recover as recover_step
    from hsmkm.steps.results import Backup
else:
    archives, attest, recover_step, setup = deferred("hsmkm.steps", "backup", "attest", "recover", "setup")

app = typer.Typer(help="The store: its integrity, its schema, and its way back from a backup.", no_args_is_help=True)


@app.command()
def check() -> None:
    """Check every row against its MAC.

    Also looks for keys that are used twice; exit code 6 for problems.
    """
    with inspecting_worker() as worker:
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
    """Bring the store to this program's schema.

    Where that puts rows under MACs which had none, they are believed as they are found, once, and an audit record says
    so: check an older program's store with that program first.
    """
    here = frame()
    settings = here.settings()
    with worker_starter(setup.open_settings, here.home)() as worker:
        sealed = worker.call(attest.upgrade_store, here.actor)
    result = "upgraded and sealed" if sealed else "up to date"
    show([{"store": settings.store_url, "result": result}], ("store", "result"))


@app.command()
def backup(file: Annotated[Path, typer.Argument(help="A new file.")]) -> None:
    """Write this home to one file.

    The database as it is at one moment, settings, certificates, trust, packages and receipts, with a list that is
    signed in the token; not the token itself, PINs or the TLS key. Others may work meanwhile.
    """
    with party_worker() as worker:
        show_archive(worker.call(archives.backup, file.resolve()))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `hsmkm store backup` wrote.")],
    approval: Approval = "",
) -> None:
    """Make a home out of a backup.

    In a folder that holds nothing but the token's own folder; the backup must be signed by that very token. A store
    that is older than its anchor is then refused until `hsmkm store recover`.
    """
    here = frame()
    with Worker(archives.open_folder, here.home.resolve()) as worker:
        show_archive(worker.call(archives.restore, file.resolve(), here.actor, named(approval)))


def show_archive(done: Backup) -> None:
    """Show what an archive holds."""
    row = {"party": done.party, "files": done.files, "octets": done.octets, "audit": done.audit, "file": done.path}
    show([row], ("party", "file"))


@app.command()
def recover(approval: Approval = "") -> None:
    """Go on with a database that was restored.

    Every counter, package sequence and generation is raised above all that can have been used in the time that is
    lost, and the anchor follows. Stop every other process of this home first.
    """
    here = frame()
    with worker_starter(recover_step.open_recovery, here.home, here.actor)() as worker:
        done = worker.call(recover_step.recover_store, named(approval))
    show(
        [
            {
                "lost_changes": "unknown" if done.changes is None else done.changes,
                "counter_jump": done.counter_jump,
                "counters_raised": done.counters,
                "urgent_renewals": done.meters,
            }
        ],
        ("lost_changes", "counter_jump", "counters_raised", "urgent_renewals"),
    )
    talk("keys and packages of the lost time are gone; next: hsmkm resolve, hsmkm renew --urgent")
