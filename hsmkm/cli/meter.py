"""`hsmkm meter`: make, inject, register and read meters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli import life
from hsmkm.cli.deferred import deferred
from hsmkm.cli.frame import frame, party_worker, show, talk
from hsmkm.cli.outcomes import raise_failed, show_outcomes
from hsmkm.cli.reference import In, attribute, shown
from hsmkm.cli.renew import read_lines
from hsmkm.cli.streamed import show_streamed
from hsmkm.config import SYSTEM_TITLE, load_model, load_settings
from hsmkm.dlms.types import AttributeRef
from hsmkm.errors import HsmkmError, InputError, PartlyDoneError
from hsmkm.steps.places import read_places
from hsmkm.steps.results import Enrolled, Outcome, Reading, Told, Wanted

if TYPE_CHECKING:
    from hsmkm.steps import agree, client_reading, communicate, line_records, party, suspicions, third_party, way_back
    from hsmkm.steps import enrol as enrol_step
    from hsmkm.steps import in_advance as advance_step
    from hsmkm.steps import in_doubt as doubt
    from hsmkm.steps import inject as inject_step
    from hsmkm.steps import permit as permit_step
    from hsmkm.steps import provision as provision_step
    from hsmkm.steps import register as register_step
    from hsmkm.steps import renew as renew_step
    from hsmkm.steps import renew_certificates as renewal
    from hsmkm.steps.party import Party
    from hsmkm.store import key_sets, key_states, meters, renewals, urgent
    from hsmkm.store.key_set import KeySet, KeySetRef, KeyState
    from hsmkm.store.meter import Meter
    from hsmkm.store.renewals import Renewal
    from hsmkm.store.store import Transaction
    from hsmkm.store.urgent import Urgent
else:
    agree, client_reading, communicate, party, suspicions, third_party, way_back = deferred(
        "hsmkm.steps", "agree", "client_reading", "communicate", "party", "suspicions", "third_party", "way_back"
    )
    doubt, line_records, renewal = deferred("hsmkm.steps", "in_doubt", "line_records", "renew_certificates")
    (advance_step,) = deferred("hsmkm.steps", "in_advance")
    enrol_step, inject_step, permit_step, provision_step, register_step, renew_step = deferred(
        "hsmkm.steps", "enrol", "inject", "permit", "provision", "register", "renew"
    )
    key_sets, key_states, meters, renewals, urgent = deferred(
        "hsmkm.store", "key_sets", "key_states", "meters", "renewals", "urgent"
    )

Row = dict[str, object]
Place = tuple[int, int]
"""The Security Setup and the client of an association."""

app = typer.Typer(help="Meters: make their keys, inject them, register, read.", no_args_is_help=True)
app.add_typer(life.app)


@app.command()
def provision(
    order: Annotated[Path, typer.Argument(help="Production order, CSV.")],
    line: Annotated[str, typer.Option(help="Party name of the line equipment that the injection package is for.")] = "",
    line_key: Annotated[
        str,
        typer.Option(help="For equipment that opens no packages: label of its line key; it gets a JSON-lines file."),
    ] = "",
) -> None:
    """Make key sets for a production order.

    Each meter gets a unique one, and the line equipment the injection package, or records under its line key.
    """
    if bool(line) == bool(line_key):
        raise typer.BadParameter("an order is for one line: give --line PARTY, or --line-key LABEL")
    with party_worker() as worker:
        if line_key:
            done = worker.call(line_records.provision_records, order.resolve(), line_key)
        else:
            done = worker.call(provision_step.provision, order.resolve(), line)
    if done.already:
        talk("this order was provisioned before; nothing was done")
    show(
        [{"order": done.order, "meters": done.meters, "package": path} for path in done.packages],
        ("order", "meters", "package"),
    )


@app.command()
def inject(
    meter: Annotated[str | None, typer.Argument(help="System title or serial number.")] = None,
    address: Annotated[str, typer.Option(help="Where the meter is, host:port; kept for later.")] = "",
    file: Annotated[Path | None, typer.Option("--list", help="File of lines METER,HOST:PORT.")] = None,
    association: Annotated[str, typer.Option(help="Only this association; by default all.")] = "",
) -> None:
    """Put provisioned keys into meters over DLMS.

    They take the place of the model's initial keys, and are proved.
    """
    places = [(meter, address)] if meter else _places(file)
    with party_worker() as worker:
        outcomes = worker.call(inject_step.inject_many, places, association)
    show_outcomes(outcomes)


@app.command()
def register(
    meter: Annotated[str | None, typer.Argument(help="System title or serial number.")] = None,
    address: Annotated[str, typer.Option(help="Where the concentrator reaches the meter, host:port.")] = "",
    file: Annotated[Path | None, typer.Option("--list", help="File of lines METER,HOST:PORT.")] = None,
    concentrator: Annotated[str, typer.Option(help="Party name of the concentrator.")] = "",
    wait: Annotated[int, typer.Option(help="Seconds to wait for each of the concentrator's receipts.")] = 60,
    *,
    in_advance: Annotated[
        bool, typer.Option("--in-advance", help="Of a list of any length: speak with no meter yet, and renew nothing.")
    ] = False,
) -> None:
    """Give meters to their concentrator and renew them.

    They are spoken to through it, and it is given the renewed global keys. In advance, before meters are mounted, their
    concentrator is told of them only; the command without that finishes them.
    """
    if in_advance:
        if meter:
            raise typer.BadParameter("only a list is registered in advance: give --list FILE in place of METER")
        _register_in_advance(_listed(file), concentrator, wait)
        return
    named = [(meter, address)] if meter else _places(file)
    with party_worker() as worker:
        outcomes = worker.call(register_step.register, named, concentrator, wait)
    show_outcomes(outcomes)


def _register_in_advance(file: Path, concentrator: str, wait: int) -> None:
    """Show each package with its receipt, and each meter that is left as it was, as they come."""
    first: list[HsmkmError] = []

    def rows(found: Iterable[Told | Outcome]) -> Iterator[dict[str, object]]:
        for item in found:
            if item.error is not None and not first:
                first.append(item.error)
            detail = item.error.message if item.error else ""
            if isinstance(item, Outcome):
                yield {"meters": item.system_title, "state": item.state, "detail": detail}
            else:
                yield {"meters": item.sent.meters, "package": item.sent.id, "state": item.state, "detail": detail}

    with party_worker() as worker:
        show_streamed(
            rows(worker.stream(advance_step.register_in_advance, file.resolve(), concentrator, wait)),
            ("meters", "package", "state", "detail"),
        )
    if first:
        raise PartlyDoneError(f"not all is done: {first[0].message}", hint=first[0].hint or "see the detail of each")


def _places(file: Path | None) -> list[tuple[str, str]]:
    return list(read_places(_listed(file)))


def _listed(file: Path | None) -> Path:
    if file is None:
        raise InputError("no meter is named", hint="give a meter and --address, or --list FILE")
    return file


@app.command()
def enrol(
    meter: Annotated[str, typer.Argument(help="System title or serial number.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write the meter's requests to.")] = None,
    certificates: Annotated[
        Path | None, typer.Option(help="Folder of the certificates TITLE.PROFILE.pem that the authority issued.")
    ] = None,
    association: In = "",
) -> None:
    """Enrol a meter's certificates over DLMS.

    The meter makes key pairs and its requests are written (--out), or it imports certificates (--certificates).
    """
    if (out is None) == (certificates is None):
        raise InputError("an enrolment has two halves", hint="give --out, and after pki issue --certificates")
    with party_worker() as worker:
        if out is not None:
            _show_enrolled(worker.call(enrol_step.request_certificates, meter, out.resolve(), association))
        elif certificates is not None:
            _show_enrolled(worker.call(enrol_step.import_certificates, meter, certificates.resolve(), association))


@app.command()
def renew_certificates(
    out: Annotated[Path | None, typer.Option(help="Folder to write the requests of the meters to.")] = None,
    certificates: Annotated[
        Path | None, typer.Option(help="Folder of the certificates TITLE.PROFILE.pem of all these meters.")
    ] = None,
    days: Annotated[int, typer.Option(min=0, max=3660, help="Also what ends within so many days.")] = 30,
) -> None:
    """Renew the certificates of all meters that are due.

    As enrol does for one: requests are written (--out), or certificates imported (--certificates).
    """
    if (out is None) == (certificates is None):
        raise InputError("a renewal has two halves", hint="give --out, and after pki issue --certificates")
    with party_worker() as worker:
        if out is not None:
            done = worker.call(renewal.request_meters, out.resolve(), days)
        elif certificates is not None:
            done = worker.call(renewal.import_meters, certificates.resolve())
    _show_enrolled(done)
    failed = {item.meter for item in done if item.state.startswith("failed")}
    if failed:
        raise PartlyDoneError(f"{len(failed)} meter(s) failed, the others are done", "see the state of each")


@app.command()
def remove_certificate(
    meter: Annotated[str, typer.Argument(help="System title or serial number.")],
    profile: Annotated[str, typer.Argument(help="digital-signature, key-agreement or tls.")],
    association: In = "",
) -> None:
    """Let a meter forget a certificate.

    Its own certificate of a profile is not used from then on.
    """
    with party_worker() as worker:
        _show_enrolled(worker.call(enrol_step.remove_certificate, meter, profile, association))


@app.command()
def introduce(
    meter: Annotated[str, typer.Argument(help="System title or serial number.")],
    party: Annotated[str, typer.Argument(help="A registered party; left out, we ourselves.")] = "",
    association: In = "",
) -> None:
    """Give a meter our own certificates, or another party's.

    It knows by them what the party signs and agrees on; whoever enrols a meter is known to it already.
    """
    with party_worker() as worker:
        _show_enrolled(worker.call(enrol_step.introduce, meter, association, party))


def _show_enrolled(done: Sequence[Enrolled]) -> None:
    columns = ("meter", "profile", "state", "serial", "file")
    rows = [
        dict(zip(columns, (item.meter, item.profile, item.state, item.serial or None, item.path), strict=True))
        for item in done
    ]
    show(rows, columns)


@app.command()
def read(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[METER] OBIS...", help="[CLASS:]OBIS[:ATTRIBUTE], class 3 and attribute 2 by default."),
    ],
    file: Annotated[Path | None, typer.Option("--list", help="In place of METER: file of lines that begin so.")] = None,
    association: In = "",
    through: Annotated[str, typer.Option(help="Of a third party: the AIM that carries its protected APDUs.")] = "",
) -> None:
    """Read attributes of meters.

    Under the active keys, and through a meter's concentrator where it has one. A concentrator reads by itself. A third
    party reads through an AIM, end to end: under keys that it agrees on with the meter.
    """
    listed = [line.partition(",")[0].strip() for line in read_lines(file) if line.strip()] if file else words[:1]
    wanted = tuple(attribute(text) for text in (words if file else words[1:]))
    if not wanted or not listed:
        raise InputError("no attribute or no meter is named", hint="for example: hsmkm meter read METER 1.0.1.8.0.255")
    with party_worker() as worker:
        readings, failed = worker.call(_read, listed, wanted, association, through)
    rows = [
        {
            "meter": name,
            "obis": str(item.attribute.logical_name),
            "class": item.attribute.class_id,
            "attribute": item.attribute.attribute,
            "type": item.data.name,
            "value": shown(item.data),
        }
        for name, item in readings
    ]
    show(rows, ("meter", "obis", "class", "attribute", "type", "value"))
    raise_failed(failed, len(listed))


def _read(
    party: Party, names: Sequence[str], wanted: tuple[AttributeRef, ...], association: str, through: str
) -> tuple[list[tuple[str, Reading]], list[Outcome]]:
    readings: list[tuple[str, Reading]] = []
    failed: list[Outcome] = []
    read_one = client_reading.read if party.settings.party.role == "concentrator" else communicate.read
    for name in names:
        with renew_step.failing(failed, name, association):
            if through:
                found = third_party.read_through(party, name, tuple(map(Wanted, wanted)), through)
            else:
                found = read_one(party, name, wanted, association)
            readings += [(name, item) for item in found]
    return readings, failed


@app.command()
def permit(
    meter: Annotated[str, typer.Argument(help="System title or serial number.")],
    party: Annotated[str, typer.Argument(help="A registered third party.")],
    *,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="It may reach the meter no more.")] = False,
) -> None:
    """Let a third party reach a meter through us.

    Its APDUs are carried, and it may be given the meter's GAK and certificates.
    """
    with party_worker() as worker:
        made = worker.call(permit_step.withdraw if withdraw else permit_step.permit, meter, party)
    show([{"meter": made.meter, "party": made.party, "state": made.state}], ("meter", "party", "state"))


@app.command(name="list")
def list_meters(
    concentrator: Annotated[str | None, typer.Option(help="Only those behind this concentrator.")] = None,
    order: Annotated[str | None, typer.Option(help="Only those of this order (its id).")] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 1000,
    after: Annotated[str, typer.Option(help="Begin behind this system title.")] = "",
    *,
    in_doubt: Annotated[
        bool, typer.Option("--in-doubt", help="Only those that wait for resolve: since when, and what was tried.")
    ] = False,
) -> None:
    """List meters by system title."""
    if in_doubt:
        if concentrator or order or after:
            raise InputError("--in-doubt lists every meter in doubt", hint="leave the other options out")
        _list_in_doubt(frame().home, limit)
        return
    if after and not SYSTEM_TITLE.fullmatch(after.upper()):
        raise InputError(f"{after!r} is not a system title", hint="16 hex digits, as the list shows them")
    columns = ("serial", "model", "suite", "concentrator", "address", "registered")
    with party.open_listing(frame().home) as store:
        every = meters.every(store, after=bytes.fromhex(after), order=order, concentrator=concentrator)
        found = islice(every, limit or None)
        rows = ({"meter": item.title} | {name: getattr(item, name) for name in columns} for item in found)
        show_streamed(rows, ("meter", *columns))


def _list_in_doubt(home: Path, limit: int) -> None:
    """Show what waits for `resolve`, the oldest first."""
    per_day = load_settings(home).policy.attempts_per_day
    with party.open_listing(home) as store, store.read() as tx:
        found = doubt.in_doubt(tx, per_day, party.utc_now(), limit or None)
        models = {item.meter: meters.find(tx, item.meter).model for item in found}
    columns = ("meter", "association", "state", "stage", "since", "attempts", "tried", "answer", "hint")
    rows: list[dict[str, object]] = []
    for item in found:
        names = _association_names(home, models[item.meter], {item.place} if item.place else set())
        known = (item.state, item.stage, item.since, item.attempts, item.tried, item.answer, item.hint)
        association = names[item.place] if item.place else None
        rows.append(dict(zip(columns, (item.meter, association, *known), strict=True)))
    show(rows, columns)


@app.command(name="show")
def show_meter(meter: Annotated[str, typer.Argument(help="System title or serial number.")]) -> None:
    """Show a meter's generations and renewals.

    Key generations come with their states, renewals with what was tried and, where a lost answer may have locked the
    meter, with the way back; where the meter has several associations, with the one they are of. What waits for an
    urgent renewal is named with its reason; suspicious answers that were refused are counted by kind.
    """
    home = frame().home
    with party.open_listing(home) as store, store.read() as tx:
        found = meters.find(tx, meter)
        kept = _kept_of(tx, found)
        refused = suspicions.of_meter(tx, found.title)
    names = _association_names(home, found.model, {place for place, _ in kept})
    rows: list[Row] = [{"association": names[place], **row} for place, row in kept]
    rows += [
        {"kind": "refusal", "number": item.count, "state": item.action, "detail": f"last at {item.last_time}"}
        for item in refused
    ]
    talk(f"{found.title} serial {found.serial} model {found.model} suite {found.suite}")
    if found.state:
        talk(f"{found.title} is {found.state}")
    several = ("association",) if len(names) > 1 else ()
    show(rows, (*several, "kind", "number", "state", "detail"))


def _kept_of(tx: Transaction, meter: Meter) -> list[tuple[Place, Row]]:
    """Give a row for everything that is kept of the associations of a meter, each with the place that it is of."""
    title = meter.system_title
    rows = [_key_set_row(key_set, state) for key_set, state in key_sets.for_meter(tx, title)]
    rows += [_destroyed_row(ref) for ref in key_states.destroyed(tx, title)]
    rows += [(item.place, _urgent_row(item)) for item in urgent.of_meter(tx, title)]
    rows += [(item.place, row) for item in renewals.listing(tx, title) for row in _renewal_rows(item, meter.title)]
    return rows


def _key_set_row(key_set: KeySet, state: KeyState) -> tuple[Place, Row]:
    roles = " ".join(key.role.value for key in key_set.keys)
    return _of_generation(key_set.ref, {"state": state.value, "detail": roles})


def _destroyed_row(ref: KeySetRef) -> tuple[Place, Row]:
    return _of_generation(ref, {"state": "destroyed", "detail": ""})


def _of_generation(ref: KeySetRef, said: Row) -> tuple[Place, Row]:
    return (ref.security_setup, ref.client), {"kind": "key set", "number": ref.generation, **said}


def _urgent_row(item: Urgent) -> Row:
    roles = " ".join(role.value for role in item.roles)
    return {"kind": "urgent", "number": None, "state": "waiting", "detail": f"{roles}: {item.reason}"}


def _renewal_rows(renewal: Renewal, title: str) -> list[Row]:
    """Show a renewal, and below it the way back where a lost answer may have locked the meter."""
    agreed = renewal.to_generation != renewal.from_generation
    leads = f"{renewal.from_generation} to {renewal.to_generation if agreed else 'none yet'}"
    detail = f"{leads}, stage {renewal.stage}, tried {list(renewal.tried)}"
    rows: list[Row] = [{"kind": "renewal", "number": renewal.id, "state": renewal.state.value, "detail": detail}]
    if agree.may_be_locked(renewal):
        rows.append({"kind": "way back", "number": renewal.id, "state": "open", "detail": way_back.way_back(title)})
    return rows


def _association_names(home: Path, model: str, places: Iterable[Place]) -> dict[Place, str]:
    """Name associations by their model; one that it lacks, by Security Setup and client."""
    try:
        whole = load_model(model, home)
        known = {whole.association(name).place: name for name in whole.associations}
    except InputError as error:
        talk(f"the model's associations have no names: {error.message}")
        known = {}
    return {place: known.get(place, f"setup {place[0]} client {place[1]}") for place in places}
