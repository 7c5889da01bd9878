"""`hsmkm token`: the party's token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, party_worker, show, talk, worker_starter
from hsmkm.errors import TokenRefusedError

if TYPE_CHECKING:
    from hsmkm.steps import rotate as rotation
    from hsmkm.steps import setup
else:
    rotation, setup = deferred("hsmkm.steps", "rotate", "setup")

app = typer.Typer(help="The PKCS#11 token that holds the party's keys.", no_args_is_help=True)


@app.command()
def init() -> None:
    """Make the token, its keys and the store.

    The keys are those for storage, integrity and signing.

    Where token.uri is set already, that token is used as it is and only the keys are made.
    """
    here = frame()
    with worker_starter(setup.open_settings, here.home)() as worker:
        made = worker.call(setup.make_token, here.actor)
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
    approval: Annotated[str | None, typer.Option(help="Approval of a second officer, by id or file.")] = None,
) -> None:
    """Make the next storage and integrity keys.

    Every key set is brought under them inside the token. What was ended early goes on when the command is given again;
    others may work meanwhile. With --retire the older keys are destroyed, if nothing is under them: no backup of before
    opens then.
    """
    with party_worker() as worker:
        if retire:
            gone = worker.call(rotation.retire, approval)
            show([{"key": key, "result": "destroyed"} for key in gone], ("key", "result"))
            return
        moved = worker.call(rotation.rotate, approval)
    show([{"keys": item.number, "table": item.table, "rows": item.rows} for item in moved], ("keys", "table", "rows"))
