"""`hsmkm officer`: who acts here with which role, and whose signature approves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.approved import Approval, named
from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, party_worker, show

if TYPE_CHECKING:
    from hsmkm.steps import officer_key, party
    from hsmkm.steps import officers as step
    from hsmkm.store import officers
else:
    officer_key, party, step = deferred("hsmkm.steps", "officer_key", "party", "officers")
    (officers,) = deferred("hsmkm.store", "officers")

app = typer.Typer(help="Officers, operators, auditors and services, and their roles.", no_args_is_help=True)
_COLUMNS = ("name", "roles", "state", "certificate")
Name = Annotated[str, typer.Argument(help="The name, as the login or --actor says it.")]


def _row(officer: officers.Officer) -> dict[str, object]:
    return {
        "name": officer.name,
        "roles": " ".join(officer.roles),
        "state": officer.state,
        "certificate": officer.fingerprint.hex() or None,
    }


@app.command()
def add(
    name: Name,
    roles: Annotated[str, typer.Option(help="officer, operator, auditor, service, with commas.")],
    certificate: Annotated[Path | None, typer.Option(help="Of an officer: the certificate, PEM.")] = None,
    approval: Approval = "",
) -> None:
    """Register a name with its roles, or change them.

    An officer's certificate is pinned; where the policy lists anything, this needs an approval itself as soon as there
    are two officers.
    """
    wanted = tuple(part.strip() for part in roles.split(","))
    file = certificate.resolve() if certificate is not None else None
    with party_worker() as worker:
        made = worker.call(step.add_officer, name, wanted, file, named(approval))
    show([_row(made)], _COLUMNS)


@app.command()
def remove(name: Name, approval: Approval = "") -> None:
    """Take every role from a name.

    It stays on record.
    """
    with party_worker() as worker:
        removed = worker.call(step.remove_officer, name, named(approval))
    show([_row(removed)], _COLUMNS)


@app.command(name="list")
def list_officers() -> None:
    """List who has which role."""
    with party.open_listing(frame().home) as store, store.read() as tx:
        show([_row(one) for one in officers.listing(tx)], _COLUMNS)


@app.command()
def request(
    name: Annotated[str, typer.Argument(help="The officer's name, as it is to be registered.")],
    out: Annotated[Path, typer.Option(help="File for the request, such as officer.csr.")],
) -> None:
    """Make an officer's key in the token of this home, and a request for its certificate.

    This is run in a home of the officer's own. An officer with a key elsewhere makes the request there.
    """
    with party_worker() as worker:
        made = worker.call(officer_key.request_certificate, name, out.resolve())
    show([{"officer": name, "file": made}], ("officer", "file"))
