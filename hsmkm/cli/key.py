"""`hsmkm key`: what is known of single keys; never a key itself, nor what would tell two values apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame
from hsmkm.cli.streamed import Row, show_streamed

if TYPE_CHECKING:
    from hsmkm.steps import known_to, party
    from hsmkm.steps.known_to import Knower
else:
    known_to, party = deferred("hsmkm.steps", "known_to", "party")

app = typer.Typer(help="Single keys: who was ever given them.", no_args_is_help=True)
COLUMNS = ("meter", "key", "generation", "state", "party", "role", "result", "given")


@app.callback()
def _noun() -> None:
    """Keep the verb where there is just one."""


@app.command(name="holders")
def list_holders(
    name: Annotated[str, typer.Argument(help="A meter, or the identity of a key (32 hex digits).")],
) -> None:
    """Say who was ever given the keys of a meter, or one key.

    Line equipment, utilities, concentrators and third parties, and whom we have them from. JSON also names each key's
    identity and the package that it travelled in.
    """
    with party.open_listing(frame().home) as store:
        show_streamed(map(_row, known_to.known_to(store, name)), COLUMNS)


def _row(item: Knower) -> Row:
    return {
        "meter": item.ref.system_title.hex().upper(),
        "security_setup": item.ref.security_setup,
        "client": item.ref.client,
        "generation": item.ref.generation,
        "key": item.role,
        "identity": item.identity,
        "state": item.state,
        "party": item.party,
        "role": item.party_role,
        "package": item.package,
        "result": item.result,
        "given": item.given,
    }
