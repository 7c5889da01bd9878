"""`hsmkm package`: the one container in which keys travel between parties."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.approved import Approval, named
from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, party_worker, show, talk
from hsmkm.cli.renew import meter_names
from hsmkm.steps.results import Taken

if TYPE_CHECKING:
    from hsmkm.packages import receive as reading
    from hsmkm.pki import certificates
    from hsmkm.steps import deliver, exporting, party, receive, tell
    from hsmkm.store import packages
else:
    (reading,) = deferred("hsmkm.packages", "receive")
    (certificates,) = deferred("hsmkm.pki", "certificates")
    deliver, exporting, party, receive, tell = deferred(
        "hsmkm.steps", "deliver", "exporting", "party", "receive", "tell"
    )
    (packages,) = deferred("hsmkm.store", "packages")

app = typer.Typer(help="Key packages between parties, and their receipts.", no_args_is_help=True)
File = Annotated[Path, typer.Argument(help="A .p7m file.")]


@app.command()
def export(
    to: Annotated[str, typer.Option(help="Party name of the recipient.")],
    meters: Annotated[list[str] | None, typer.Argument(help="System titles or serial numbers.")] = None,
    purpose: Annotated[str, typer.Option(help="delivery, distribution or transfer.")] = "delivery",
    order: Annotated[str | None, typer.Option(help="All meters of this order (its id).")] = None,
    file: Annotated[Path | None, typer.Option("--list", help="File with one meter on each line.")] = None,
    approval: Approval = "",
) -> None:
    """Make a key package for a registered party.

    The keys are wrapped for it, and the signed package is written to HOME/packages.
    """
    names = meter_names(meters, file) if meters or file else []
    with party_worker() as worker:
        sent = worker.call(exporting.export, purpose, to, tuple(names), order, named(approval))
    show(
        [{"package": sent.id, "purpose": sent.purpose, "to": sent.recipient, "meters": sent.meters, "file": sent.path}],
        ("package", "purpose", "to", "meters", "file"),
    )


@app.command(name="import")
def import_package(file: File) -> None:
    """Take a key package, whole or not at all.

    It is verified, its keys go into the token's care, and its receipt is signed.
    """
    with party_worker() as worker:
        taken = worker.call(receive.receive_file, file.resolve())
    if taken.replayed:
        talk("this package was taken before; its first receipt is given again")
    _show_taken(taken)


@app.command()
def receipt(
    package: Annotated[str, typer.Argument(help="Id of a package taken here, or with --from-file a receipt.")],
    *,
    from_file: Annotated[
        bool, typer.Option("--from-file", help="Keep the recipient's receipt for a package of ours.")
    ] = False,
) -> None:
    """Show or keep a receipt.

    Shows where that of a package taken here is, or checks and keeps a recipient's.
    """
    with party_worker() as worker:
        if not from_file:
            _show_taken(worker.call(receive.receipt_of, package))
            return
        record, replayed = worker.call(deliver.accept_receipt, receive.read_package(Path(package)))
        worker.call(tell.tell_of_receipt, record.id)
    if replayed:
        talk("this receipt was kept before")
    show([{"package": record.id, "to": record.peer, "state": record.state}], ("package", "to", "state"))


def _show_taken(taken: Taken) -> None:
    row: Mapping[str, object] = {
        "package": taken.id,
        "purpose": taken.purpose,
        "from": taken.sender,
        "meters": taken.meters,
        "receipt": taken.path,
    }
    show([row], ("package", "purpose", "from", "meters", "receipt"))


@app.command()
def inspect(file: File) -> None:
    """Show what a package says.

    Its signature is checked; no token is needed, and nothing is trusted.
    """
    inspected = reading.inspect_package(receive.read_package(file))
    header = inspected.content.header
    talk(f"package {header.id}, {header.purpose.value} number {header.sequence}")
    talk(f"from {header.sender.name} ({header.sender.role}) to {header.recipient.name} ({header.recipient.role})")
    talk(f"signed by {certificates.holder(inspected.signed.signer)}, sha-256 {inspected.sha256.hex()}")
    talk(f"created {header.created.isoformat()}, expires {header.expires.isoformat()}")
    rows = [
        {
            "meter": entry.system_title.hex().upper(),
            "serial": entry.serial,
            "model": entry.model,
            "suite": entry.suite,
            "setup": entry.security_setup,
            "client": entry.client,
            "generation": entry.generation,
            "state": entry.state,
            "keys": " ".join(key.role.value for key in entry.keys),
        }
        for entry in inspected.content.meters
    ]
    several = ("setup", "client") if len({(row["setup"], row["client"]) for row in rows}) > 1 else ()
    show(rows, ("meter", "serial", "model", "suite", *several, "generation", "state", "keys"))


@app.command(name="list")
def list_packages() -> None:
    """List packages sent and received, and what became of them."""
    with party.open_listing(frame().home) as store, store.read() as tx:
        found = packages.listing(tx)
    rows = [
        {
            "package": item.id,
            "direction": item.direction.value,
            "purpose": item.purpose,
            "sequence": item.sequence,
            "peer": item.peer,
            "meters": item.meters,
            "state": item.state,
            "created": item.created,
        }
        for item in found
    ]
    show(rows, ("package", "direction", "purpose", "sequence", "peer", "meters", "state", "created"))
