"""`hsmkm renew` and `hsmkm resolve`: new keys into meters, and the truth about those in doubt."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsmkm.cli.deferred import deferred
from hsmkm.cli.ending import Interruption
from hsmkm.cli.frame import party_worker, talk
from hsmkm.cli.outcomes import show_outcomes
from hsmkm.cli.reference import In
from hsmkm.errors import InputError
from hsmkm.steps.results import Outcome
from hsmkm.store.key_set import ROLE_NAMES
from hsmkm.token.types import KeyRole, MeterRole

if TYPE_CHECKING:
    from hsmkm.steps import agree, renew_many, urgent
    from hsmkm.steps import renew as renew_step
    from hsmkm.steps import resolve as resolve_step
    from hsmkm.steps.party import Party
else:
    agree, renew_many, renew_step, resolve_step, urgent = deferred(
        "hsmkm.steps", "agree", "renew_many", "renew", "resolve", "urgent"
    )


class By(StrEnum):
    """How new keys come about: made here and wrapped, or agreed on with the meter."""

    KEY_TRANSFER = "key-transfer"
    KEY_AGREEMENT = "key-agreement"


BY_DEFAULT: dict[By, tuple[MeterRole, ...]] = {
    By.KEY_TRANSFER: (KeyRole.GUEK, KeyRole.GAK, KeyRole.GBEK),
    By.KEY_AGREEMENT: (KeyRole.GUEK,),
}
Meters = Annotated[list[str] | None, typer.Argument(help="System titles or serial numbers.")]

app = typer.Typer()


@app.command()
def renew(
    meters: Meters = None,
    file: Annotated[Path | None, typer.Option("--list", help="File with one meter on each line.")] = None,
    keys: Annotated[
        str | None,
        typer.Option(help="guek, gak, gbek, master, lls, hls, with commas; by default the global keys it takes."),
    ] = None,
    association: In = "",
    by: Annotated[By, typer.Option(help="The method of the meter's Security Setup.")] = By.KEY_TRANSFER,
    *,
    prove_refusal: Annotated[
        bool, typer.Option("--prove-refusal", help="Also show that the meter refuses the old keys.")
    ] = False,
    urgently: Annotated[
        bool, typer.Option("--urgent", help="In place of meters: all keys that somebody knows and must not.")
    ] = False,
) -> None:
    """Renew keys of meters over DLMS, several at a time.

    Each is verified by a new association. Ctrl-C ends the work when the meters that are under way
    are done. With --urgent what is compromised, or was known to somebody who left, is renewed as
    far as it waits for it: meters and broadcast groups, resolved before where they are in doubt.

    A meter whose state is in doubt afterwards is listed as unknown and the exit code is 7; `hsmkm resolve` finishes it.
    """
    if urgently:
        _renew_urgently(alone=not (meters or file or keys or association))
        return
    roles = key_roles(keys) if keys else BY_DEFAULT[by]
    names = meter_names(meters, file)
    ending = Interruption()
    with party_worker() as worker:
        if by is By.KEY_AGREEMENT:
            outcomes = worker.call(_agree, names, roles, association, prove_refusal)
        else:
            outcomes = ending.gather(worker.stream(_renew, names, roles, association, prove_refusal))
    places = {name: place for place, name in enumerate(names)}
    show_outcomes(sorted(outcomes, key=lambda item: (places.get(item.system_title, len(names)), item.system_title)))
    ending.end()


def _renew_urgently(*, alone: bool) -> None:
    if not alone:
        raise InputError("what is urgent is not chosen", hint="give --urgent alone: hsmkm renew --urgent")
    with party_worker() as worker:
        outcomes = worker.call(urgent.renew_urgent)
    if not outcomes:
        talk("no keys wait for an urgent renewal")
    show_outcomes(outcomes)


@app.command()
def resolve(
    meters: Meters = None,
    association: Annotated[str, typer.Option(help="Only this association; by default each that needs it.")] = "",
    *,
    every: Annotated[bool, typer.Option("--all", help="Every meter whose renewal did not end.")] = False,
    no_renew: Annotated[bool, typer.Option("--no-renew", help="Only record what is true; send no new keys.")] = False,
) -> None:
    """Finish renewals whose end is not known.

    Finds out what the meters hold, and goes on with fresh keys.
    """
    with party_worker() as worker:
        names = worker.call(resolve_step.unfinished) if every else meter_names(meters, None)
        outcomes = worker.call(_resolve, names, association, not no_renew)
    show_outcomes(outcomes)


def _agree(
    party: Party, names: list[str], roles: tuple[MeterRole, ...], association: str, prove: bool
) -> list[Outcome]:
    return agree.renew_by_agreement(party, names, roles, association, prove_refusal=prove)


def _renew(
    party: Party, names: list[str], roles: tuple[MeterRole, ...], association: str, prove: bool
) -> Generator[Outcome, None, None]:
    yield from renew_many.renew_many(party, names, roles, association, prove_refusal=prove)


def _resolve(party: Party, names: list[str], association: str, go_on: bool) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for name in names:
        with renew_step.failing(outcomes, name, association):
            outcomes += resolve_step.resolve_all(party, name, association, go_on=go_on)
    return outcomes


def key_roles(text: str) -> tuple[MeterRole, ...]:
    """Read the names of keys, with commas between; InputError names the one that is none."""
    try:
        return tuple(dict.fromkeys(ROLE_NAMES[part.strip()] for part in text.split(",")))
    except KeyError as error:
        hint = "guek, gak, gbek, master, lls and hls, with commas between"
        raise InputError(f"unknown key in {text!r}", hint=hint) from error


def meter_names(meters: Sequence[str] | None, file: Path | None) -> list[str]:
    """Name the meters of a command line and of a list, each once; InputError where there is none."""
    names = list(meters or ())
    if file is not None:
        names += [line.strip() for line in read_lines(file) if line.strip()]
    if not names:
        raise InputError("no meter is named", hint="give system titles, or a file with --list")
    return list(dict.fromkeys(names))


def read_lines(file: Path) -> list[str]:
    """Read a list that a person made; InputError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {type(error).__name__}", hint="give a UTF-8 text file") from error
