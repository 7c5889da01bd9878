"""`hsmkm party`: the parties we deal with, each with a role and pinned certificates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, party_worker, show
from hsmkm.config import CONCENTRATOR_KINDS, ROLES
from hsmkm.errors import InputError

if TYPE_CHECKING:
    from hsmkm.steps import party as party_step
    from hsmkm.steps import register_party
    from hsmkm.store import parties
else:
    party_step, register_party = deferred("hsmkm.steps", "party", "register_party")
    (parties,) = deferred("hsmkm.store", "parties")

app = typer.Typer(help="The parties we deal with, and their certificates.", no_args_is_help=True)
_COLUMNS = ("party", "role", "system_title", "flags", "kind", "address", "certificates")


def _row(party: parties.Party) -> dict[str, object]:
    return {
        "party": party.name,
        "role": party.role,
        "system_title": party.system_title.hex().upper() if party.system_title else None,
        "flags": " ".join(party.flags),
        "kind": party.kind,
        "address": party.address,
        "certificates": " ".join(sorted(party.certificates)),
    }


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The party's name, as its package-signing certificate says it.")],
    role: Annotated[str, typer.Option(help=f"One of {', '.join(ROLES)}.")],
    certificates: Annotated[Path, typer.Option(help="Folder of the party's certificates, PROFILE.pem each.")],
    flag: Annotated[list[str] | None, typer.Option(help="A FLAG id it may speak for; repeatable.")] = None,
    kind: Annotated[str, typer.Option(help="Of a concentrator: relay or client.")] = "",
    address: Annotated[
        str, typer.Option(help="host:port: of a concentrator, where it listens; of an AIM, its service.")
    ] = "",
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Change a registered party, pinning anew.")] = False,
) -> None:
    """Register a party and pin its certificates.

    A valid chain alone gives no authority.
    """
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}", hint=f"use one of {', '.join(ROLES)}")
    if kind and kind not in CONCENTRATOR_KINDS:
        raise InputError(f"unknown kind {kind!r}", hint="use relay or client")
    plan = register_party.PartyPlan(
        name, role, tuple(flag or ()), kind, address, certificates.resolve(), replace=replace
    )
    with party_worker() as worker:
        made = worker.call(register_party.register_party, plan)
    show([_row(made)], _COLUMNS)


@app.command(name="list")
def list_parties() -> None:
    """List the registered parties."""
    with party_step.open_listing(frame().home) as store, store.read() as tx:
        show([_row(party) for party in parties.listing(tx)], _COLUMNS)
