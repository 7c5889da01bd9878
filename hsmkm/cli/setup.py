"""`hsmkm init`: a new home folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, show
from hsmkm.config import ROLES

if TYPE_CHECKING:
    from hsmkm.steps import setup
else:
    (setup,) = deferred("hsmkm.steps", "setup")

app = typer.Typer()


@app.command()
def init(
    name: Annotated[str, typer.Option(help="The party's name, as others will register it.")],
    role: Annotated[str, typer.Option(help=f"One of {', '.join(ROLES)}.")],
    system_title: Annotated[str, typer.Option(help="The party's own system title, 16 hex digits.")],
    flag: Annotated[list[str] | None, typer.Option(help="A FLAG id the party makes meters of; repeatable.")] = None,
    profile: Annotated[str, typer.Option(help="The kind of token, a file of tokens/.")] = "softhsm2",
) -> None:
    """Make a home folder with its settings.

    `hsmkm token init` comes next.
    """
    settings = setup.write_home(frame().home, name, role, system_title.upper(), tuple(flag or ()), profile)
    show([{"party": settings.party.name, "role": role, "home": str(settings.home)}], ("party", "role", "home"))
