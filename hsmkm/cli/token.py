"""`hsmkm token`: the party's token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.approved import Approval, named
from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, party_worker, show, talk, worker_starter
from hsmkm.errors import InputError, TokenRefusedError

if TYPE_CHECKING:
    from hsmkm.steps import line_keys as lines
    from hsmkm.steps import migrate as moving
    from hsmkm.steps import rotate as rotation
    from hsmkm.steps import setup, take_over
else:
    lines, moving, rotation, setup, take_over = deferred(
        "hsmkm.steps", "line_keys", "migrate", "rotate", "setup", "take_over"
    )

app = typer.Typer(help="The PKCS#11 token that holds the party's keys.", no_args_is_help=True)


@app.command()
def init(approval: Approval = "") -> None:
    """Make the token, its keys and the store.

    The keys are those for storage, integrity and signing.

    Where token.uri is set already, that token is used as it is and only the keys are made.
    """
    here = frame()
    with worker_starter(setup.open_settings, here.home)() as worker:
        made = worker.call(setup.make_token, here.actor, named(approval))
    show([{"token": made.uri, "key": key} for key in made.keys], ("key", "token"))


@app.command()
def doctor() -> None:
    """Try the token: operations, guards, exposures.

    Every operation this party needs is done, and every guard misused, on the token itself: ok, FAILED, open for a guard
    that this kind of token does not have, declared for a value that is in host memory in clear.
    """
    here = frame()
    with worker_starter(setup.open_settings, here.home)() as worker:
        findings = worker.call(setup.examine_token)
    show(
        [{"check": item.name, "ok": item.verdict, "detail": item.detail} for item in findings],
        ("ok", "check", "detail"),
    )
    failed = [item for item in findings if not item.ok]
    for item in failed:
        if item.error is not None:
            raise item.error
        talk(f"hint: {item.name}: {item.hint}")
    if failed:
        raise TokenRefusedError(f"{len(failed)} of {len(findings)} checks failed", "see the hints above")


@app.command()
def rotate(
    *,
    retire: Annotated[
        bool, typer.Option("--retire", help="Destroy the keys that earlier rotations replaced, instead.")
    ] = False,
    approval: Approval = "",
) -> None:
    """Make the next storage and integrity keys.

    Every key set is brought under them inside the token. What was ended early goes on when the command is given again;
    others may work meanwhile. With --retire the older keys are destroyed, if nothing is under them: no backup of before
    opens then.
    """
    with party_worker() as worker:
        if retire:
            gone = worker.call(rotation.retire, named(approval))
            show([{"key": key, "result": "destroyed"} for key in gone], ("key", "result"))
            return
        moved = worker.call(rotation.rotate, named(approval))
    show([{"keys": item.number, "table": item.table, "rows": item.rows} for item in moved], ("keys", "table", "rows"))


@app.command()
def import_key(
    label: Annotated[str, typer.Argument(help="A label for the line key.")],
    order: Annotated[Path, typer.Option(help="The production order that the key is for, CSV.")],
    component: Annotated[
        list[Path], typer.Option(help="File of 64 hex digits, mode 0600; given twice, the key is the XOR of both.")
    ],
    check: Annotated[str, typer.Option(help="The check value that the key must have, 6 hex digits.")] = "",
    approval: Approval = "",
) -> None:
    """Import the key of a line that opens no packages.

    It is for one order, and wraps the master keys of its meters; see `hsmkm meter provision --line-key`.
    """
    files = [path.resolve() for path in component]
    with party_worker() as worker:
        held = worker.call(lines.import_line_key, label, order.resolve(), files, check, named(approval))
    row = {"line_key": held.label, "check": held.check, "order": held.order, "file": held.name}
    show([row], ("line_key", "check", "order", "file"))


@app.command()
def destroy_key(
    label: Annotated[str, typer.Argument(help="The label of a line key.")],
    approval: Approval = "",
) -> None:
    """Destroy the key of a line, when it has what it was for."""
    with party_worker() as worker:
        gone = worker.call(lines.destroy_line_key, label, named(approval))
    show([{"line_key": gone.label, "result": "destroyed"}], ("line_key", "result"))


@app.command()
def line_keys() -> None:
    """List the line keys of the token, with the order that each is for."""
    with party_worker() as worker:
        found = worker.call(lines.line_keys)
    rows = [{"line_key": held.label, "order": held.order, "file": held.name} for held in found]
    show(rows, ("line_key", "order", "file"))


@app.command()
def migrate(
    file: Annotated[Path, typer.Argument(help="The archive: a new file with --to, one from the old home with --from.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="The old home: key-agreement certificate (PEM) of the new home's token.")
    ] = None,
    signer: Annotated[
        Path | None, typer.Option("--from", help="The new home: package-signing certificate (PEM) of the old home.")
    ] = None,
    *,
    standby: Annotated[
        bool, typer.Option("--standby", help="Leave the old home at work; the archive is for when its token is lost.")
    ] = False,
    approval: Approval = "",
) -> None:
    """Move this party to another token.

    The old home writes an archive, with every key wrapped for the new token, and is retired: it refuses all work from
    then on. The new home, made with `hsmkm init` for the same party, takes it in whole. With --standby the old home
    goes on, and whoever takes the archive over raises every counter.
    """
    if (to is None) == (signer is None) or (signer is not None and standby):
        raise InputError("a migration is either --to a new token or --from an old home", hint="see --help")
    with party_worker() as worker:
        if to is not None:
            done = worker.call(moving.migrate, to.resolve(), file.resolve(), standby, named(approval))
        elif signer is not None:
            done = worker.call(take_over.take_over, file.resolve(), signer.resolve(), named(approval))
    row = {"party": done.party, "purpose": done.purpose, "files": done.files, "audit": done.audit, "file": done.path}
    show([row], ("party", "purpose", "file"))
