"""`hsmkm token`: the party's token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, show, talk, worker_starter
from hsmkm.errors import TokenRefusedError

if TYPE_CHECKING:
    from hsmkm.steps import setup
else:
    (setup,) = deferred("hsmkm.steps", "setup")

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
