"""The command `hsmkm NOUN VERB`: assembles the nouns, and is the console script's entry."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated

import typer

from hsmkm.cli.frame import Frame, Output, default_actor, enter, run
from hsmkm.cli.nouns import Nouns

app = typer.Typer(
    name="hsmkm",
    cls=Nouns,
    help="A key manager for DLMS/COSEM smart metering whose keys live in a token behind PKCS#11.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(
    home: Annotated[
        Path, typer.Option(envvar="HSMKM_HOME", help="The party's home folder.", show_default="current folder")
    ] = Path(),
    output: Annotated[Output, typer.Option(help="The form of results on stdout.")] = Output.TABLE,
    actor: Annotated[str, typer.Option(help="Who acts, for the audit log.", show_default="login name")] = "",
) -> None:
    """A key manager for DLMS/COSEM smart metering whose keys live in a token behind PKCS#11."""
    enter(Frame(home, output, actor or default_actor()))


def main() -> None:
    """Run the command line and exit with its code, without a last search for garbage: all of it ends now."""
    code = run(app)
    gc.freeze()
    sys.exit(code)
