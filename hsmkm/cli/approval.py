"""`hsmkm approval`: a second officer's signature under exactly what is to be done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, party_worker, show, talk

if TYPE_CHECKING:
    from hsmkm.packages.approval import ApprovalRequest
    from hsmkm.steps import approve, officer_key, officers, party
    from hsmkm.store import approvals
else:
    approve, officer_key, officers, party = deferred("hsmkm.steps", "approve", "officer_key", "officers", "party")
    (approvals,) = deferred("hsmkm.store", "approvals")

app = typer.Typer(help="Approvals: a second officer's signature under one request.", no_args_is_help=True)
_ASK = "prompt:"
_COLUMNS = ("approval", "action", "subject", "requested_by", "signed_by", "state", "expires")
File = Annotated[Path, typer.Argument(help="A request as hsmkm approval request wrote it.")]


@app.command()
def request(
    action: Annotated[str, typer.Argument(help="What is to be done.")],
    subject: Annotated[str, typer.Argument(help="To what.")],
    request: Annotated[str, typer.Option(help="Every detail of it, JSON.")],
    out: Annotated[Path | None, typer.Option(help="File for the request; by default HOME/approvals/ID.json.")] = None,
) -> None:
    """Write the request that a second officer signs.

    A command that wants an approval names this command in full, in its hint.
    """
    asked, path = approve.write_request(frame().settings(), frame().actor, (action, subject, request), out)
    row = {"request": asked.id, "action": action, "subject": subject, "expires": asked.expires, "file": path}
    show([row], ("request", "action", "subject", "expires", "file"))


@app.command()
def sign(
    file: File,
    certificate: Annotated[Path, typer.Option(help="The officer's certificate, PEM.")],
    key: Annotated[
        Path | None, typer.Option(help="The officer's key, PEM; by default the officer's key in this home's token.")
    ] = None,
    passphrase: Annotated[
        str, typer.Option(help="Where an encrypted key's passphrase is: prompt:, env:, file:, fd:, command:.")
    ] = _ASK,
    out: Annotated[Path | None, typer.Option(help="File for the signed request; by default FILE with .p7m.")] = None,
) -> None:
    """Sign a request as an officer.

    This is run by the second officer, with that officer's own key. What is signed is shown first.
    """
    asked = officer_key.read_request(file)
    _talk(asked)
    target = (out or file.with_suffix(".p7m")).resolve()
    places = (file.resolve(), certificate.resolve(), target)
    if key is None:
        with party_worker() as worker:
            worker.call(officer_key.sign_with_token, *places)
    else:
        officer_key.sign_with_file(*places, key.resolve(), passphrase)
    show([{"request": asked.id, "file": target}], ("request", "file"))


@app.command()
def add(file: Annotated[Path, typer.Argument(help="A signed request, .p7m.")]) -> None:
    """Take a signed request.

    The signature, the signer's certificate and role, and the request are checked; the approval can then be used, once.
    """
    with party_worker() as worker:
        found = worker.call(officers.add_approval, file.resolve())
    show([_row(found)], _COLUMNS)


@app.command(name="list")
def list_approvals() -> None:
    """List approvals, the newest first, and what became of them."""
    with party.open_listing(frame().home) as store, store.read() as tx:
        show([_row(one) for one in approvals.listing(tx)], _COLUMNS)


@app.command(name="show")
def show_request(file: Annotated[Path, typer.Argument(help="A request, signed or not.")]) -> None:
    """Show what a request asks for, before it is signed.

    A signature is checked; nothing is trusted.
    """
    _talk(officer_key.read_request(file))


def _talk(asked: ApprovalRequest) -> None:
    talk(f"request {asked.id} of {asked.requested_by} for {asked.party}")
    talk(f"{asked.action} of {asked.subject}, until {asked.expires.isoformat()}")
    talk(json.dumps(dict(asked.request), indent=2, sort_keys=True))


def _row(approval: approvals.Approval) -> dict[str, object]:
    over = approval.state == "open" and approval.expires < party.utc_now()
    return {
        "approval": approval.id,
        "action": approval.action,
        "subject": approval.subject,
        "requested_by": approval.requested_by,
        "signed_by": " ".join(one.officer for one in approval.decisions),
        "state": "expired" if over else approval.state,
        "expires": approval.expires,
    }
