"""`hsmkm apdu`: APDUs that are protected end to end between a third party and a meter, as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import party_worker, show
from hsmkm.cli.reference import attribute, shown
from hsmkm.dlms.general import LARGEST_APDU
from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError
from hsmkm.steps.results import Wanted

if TYPE_CHECKING:
    from hsmkm.steps import broker, third_party
else:
    broker, third_party = deferred("hsmkm.steps", "broker", "third_party")

app = typer.Typer(help="APDUs of third parties, protected end to end.", no_args_is_help=True)
File = Annotated[Path, typer.Argument(help="File of an APDU.")]
Out = Annotated[Path, typer.Option(help="File to write.")]


@app.command()
def protect(
    meter: Annotated[str, typer.Argument(help="System title or serial number.")],
    obis: Annotated[str, typer.Argument(help="[CLASS:]OBIS[:ATTRIBUTE] to read, class 3 and attribute 2 by default.")],
    out: Out,
    key: Annotated[str, typer.Option(help="The agreed key: one-pass or static.")] = "one-pass",
    *,
    sign: Annotated[bool, typer.Option("--sign", help="Sign it too, whatever the model's policy demands.")] = False,
) -> None:
    """Protect a request for a meter.

    Under a key that this third party and the meter agree on, so that only the meter opens it.
    """
    wanted = Wanted(attribute(obis), key, sign)
    with party_worker() as worker:
        made = worker.call(third_party.protect, meter, wanted, out.resolve())
    columns = ("meter", "transaction", "octets", "file")
    show([dict(zip(columns, (made.meter, made.transaction, made.octets, made.path), strict=True))], columns)


@app.command(name="open")
def open_file(file: File) -> None:
    """Open a meter's answer.

    It must be the meter's, for this third party, and for a request that waits for its answer.
    """
    with party_worker() as worker:
        found = worker.call(third_party.open_answer, _read(file))
    row = {
        "obis": str(found.attribute.logical_name),
        "class": found.attribute.class_id,
        "attribute": found.attribute.attribute,
        "type": found.data.name,
        "value": shown(found.data),
    }
    show([row], ("obis", "class", "attribute", "type", "value"))


@app.command()
def forward(file: File, out: Out) -> None:
    """Carry a third party's APDU to its meter.

    In our own association, for a third party that is registered and permitted. The answer is written as it came.
    """
    with party_worker() as worker:
        answer = worker.call(broker.forward, _read(file))
    replace_file(out.resolve(), answer)
    show([{"octets": len(answer), "file": out.resolve()}], ("octets", "file"))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_APDU + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint="give the path of an APDU's file") from error
    if len(data) > LARGEST_APDU:
        raise InputError(f"{path} has more than {LARGEST_APDU} octets", hint="an APDU has fewer")
    return data
