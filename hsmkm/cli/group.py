"""`hsmkm group`: meters that share their broadcast keys, the renewal of these, and broadcasts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import party_worker, show, talk
from hsmkm.cli.outcomes import show_outcomes, show_rows
from hsmkm.cli.renew import meter_names
from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError, PartlyDoneError
from hsmkm.steps.results import Outcome

if TYPE_CHECKING:
    from hsmkm.steps import broadcast as broadcast_step
    from hsmkm.steps import group_members, group_renew
    from hsmkm.steps.group_members import Overview
    from hsmkm.steps.party import Party
else:
    broadcast_step, group_members, group_renew = deferred("hsmkm.steps", "broadcast", "group_members", "group_renew")

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class View:
    """A group as it is shown: its row in a list, a row for each member, what is said of it, and how many wait."""

    group: Row
    members: tuple[Row, ...]
    said: tuple[str, ...]
    waiting: int


app = typer.Typer(help="Groups of meters that share their broadcast keys.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The group.")]
Meters = Annotated[list[str] | None, typer.Argument(help="System titles or serial numbers.")]
File = Annotated[Path | None, typer.Option("--list", help="File with one meter on each line.")]

MEMBER_COLUMNS = ("group", "system_title", "serial", "state", "holds", "can_open")
GROUP_COLUMNS = ("group", "suite", "client", "members", "current", "next", "waiting", "renewal", "origin")
DELIVERY_COLUMNS = ("system_title", "state", "can_open", "detail")


@app.command()
def create(
    name: Name,
    suite: Annotated[int, typer.Option(help="Security suite of all members.")] = 0,
    client: Annotated[int, typer.Option(help="Service access point that broadcasts come from.")] = 102,
) -> None:
    """Make a group without members.

    Its keys are made by its first renewal.
    """
    with party_worker() as worker:
        found = worker.call(_create, name, suite, client)
    show([found.group], GROUP_COLUMNS)


@app.command()
def add(name: Name, meters: Meters = None, file: File = None) -> None:
    """Put meters into a group, all or none.

    They learn its keys with the next `hsmkm group renew`.
    """
    names = meter_names(meters, file)
    with party_worker() as worker:
        found = worker.call(_add, name, names)
    _show_members(found)


@app.command()
def remove(
    name: Name,
    meters: Meters = None,
    file: File = None,
    *,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="Broadcast nothing until the group has other keys.")
    ] = False,
) -> None:
    """Take meters out of a group, whose keys must then be renewed."""
    names = meter_names(meters, file)
    with party_worker() as worker:
        found = worker.call(_remove, name, names, compromised)
    _show_members(found)


@app.command(name="show")
def show_group(name: Name) -> None:
    """Show a group's members, and which of its keys each holds."""
    with party_worker() as worker:
        found = worker.call(_view, name)
    _show_members(found)


@app.command(name="list")
def list_groups() -> None:
    """List all groups."""
    with party_worker() as worker:
        found = worker.call(_list)
    show(found, GROUP_COLUMNS)


@app.command()
def renew(
    name: Name,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="Do not wait for this member; may be given again.")
    ] = None,
) -> None:
    """Give every member the group's next keys, and switch when all have them.

    Until then broadcasts go on under the keys in force. Run it again to go on where it stopped; the exit code is 7
    while the group has not switched.
    """
    with party_worker() as worker:
        outcomes, switched, found = worker.call(_renew, name, tuple(without or ()))
    _tell(found)
    if switched:
        show_outcomes(outcomes)
        return
    show_rows(outcomes)
    raise PartlyDoneError(
        f"group {name} has not switched: {found.waiting} members lack the next keys",
        hint=f"hsmkm group show {name}; then hsmkm group renew {name} again, or leave members out with --without",
    )


@app.command()
def broadcast(
    name: Name,
    apdu: Annotated[str, typer.Argument(help="A plain SET or ACTION request that asks for no answer, in hex.")],
    form: Annotated[
        str, typer.Option(help="general-glo, or glo where the meters know our system title.")
    ] = "general-glo",
    file: Annotated[
        Path | None, typer.Option("--output", help="Write the protected APDU to this file and send nothing.")
    ] = None,
) -> None:
    """Protect an APDU for all members of a group, and send it to each.

    No meter answers a broadcast: that it was sent is all that is known of it.
    """
    plain = _octets(apdu)
    with party_worker() as worker:
        protected, deliveries, failed = worker.call(_broadcast, name, plain, form, file)
    if file is not None:
        show([protected | {"file": str(file)}], ("group", "generation", "counter", "file"))
        return
    talk(f"group {name}: keys {protected['generation']}, counter {protected['counter']}; no meter confirms a broadcast")
    show(deliveries, DELIVERY_COLUMNS)
    if failed:
        raise PartlyDoneError(f"the broadcast did not leave for {failed} of {len(deliveries)} members")


def _create(party: Party, name: str, suite: int, client: int) -> View:
    group_members.create(party, name, suite, client)
    return _view(party, name)


def _add(party: Party, name: str, names: list[str]) -> View:
    return _seen(group_members.add(party, name, names))


def _remove(party: Party, name: str, names: list[str], compromised: bool) -> View:
    return _seen(group_members.remove(party, name, names, compromised=compromised))


def _view(party: Party, name: str) -> View:
    return _seen(group_members.overview(party, name))


def _list(party: Party) -> list[Row]:
    return [_group_row(item) for item in group_members.listing(party)]


def _renew(party: Party, name: str, without: tuple[str, ...]) -> tuple[tuple[Outcome, ...], bool, View]:
    done = group_renew.renew(party, name, without=without)
    return done.outcomes, done.switched, _seen(done.overview)


def _broadcast(party: Party, name: str, apdu: bytes, form: str, file: Path | None) -> tuple[Row, list[Row], int]:
    """Protect, and write to the file or send: the row of the broadcast, of each delivery, and how many failed."""
    protected = broadcast_step.protect(party, name, apdu, form)
    counted = {"generation": protected.generation, "counter": protected.counter}
    row: Row = {"group": name, **counted, "apdu": protected.apdu.hex().upper()}
    if file is not None:
        replace_file(file, protected.apdu)
        return row, [], 0
    found = broadcast_step.send(party, protected)
    rows: list[Row] = [
        {
            "system_title": item.system_title,
            "state": item.state,
            "can_open": item.can_open,
            "detail": item.detail,
            **counted,
        }
        for item in found
    ]
    return row, rows, sum(item.error is not None for item in found)


def _octets(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise InputError("the APDU is not written in hex", hint="two digits for each octet") from error


def _show_members(found: View) -> None:
    show(found.members, MEMBER_COLUMNS)
    _tell(found)


def _tell(found: View) -> None:
    for line in found.said:
        talk(line)


def _seen(found: Overview) -> View:
    name = found.group.name
    in_force = f"keys {found.current.generation} in force" if found.current else "no keys in force"
    learning = f", keys {found.next.generation} being learned" if found.next else ""
    said = [f"group {name}: {in_force}{learning}, {len(found.waiting)} of {found.count} members lack the newest"]
    if found.group.renewal:
        why = f"a meter left it ({found.group.renewal.value}) with its keys"
        said.append(f"group {name}: {why}; renew: hsmkm group renew {name}")
    members = tuple(_member_row(found, place) for place in range(len(found.standings)))
    return View(_group_row(found), members, tuple(said), len(found.waiting))


def _member_row(found: Overview, place: int) -> Row:
    item = found.standings[place]
    return {
        "group": item.member.group,
        "system_title": item.member.title,
        "serial": item.meter.serial,
        "state": item.member.state.value,
        "holds": item.holds,
        "can_open": item.receives,
    }


def _group_row(found: Overview) -> Row:
    group = found.group
    return {
        "group": group.name,
        "suite": group.suite,
        "client": group.client,
        "members": found.count,
        "current": found.current.generation if found.current else None,
        "next": found.next.generation if found.next else None,
        "waiting": len(found.waiting),
        "renewal": group.renewal.value or None,
        "origin": group.origin or None,
    }
