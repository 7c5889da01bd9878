"""How work on many meters ends: a row for each, and the exit code of the gravest."""

from __future__ import annotations

from collections.abc import Sequence

from hsmkm.cli.frame import show
from hsmkm.errors import PartlyDoneError, RefusedError
from hsmkm.steps.results import Outcome


def show_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Show every outcome; raises the error of a single meter, PartlyDoneError where some of several failed."""
    show_rows(outcomes)
    raise_failed([item for item in outcomes if item.error is not None], len(outcomes))


def show_rows(outcomes: Sequence[Outcome]) -> None:
    """Show every outcome, and leave what failed to the caller.

    A meter with several associations has a row for each; else nothing is said of associations.
    """
    several = ("association",) if any(item.association for item in outcomes) else ()
    rows = [
        {
            "meter": item.system_title,
            "association": item.association or None,
            "state": item.state,
            "generation": item.generation or None,
            "detail": item.detail,
        }
        for item in outcomes
    ]
    show(rows, ("meter", *several, "state", "generation", "detail"))


def raise_failed(failed: Sequence[Outcome], asked: int) -> None:
    """Raise the error of the one meter that was asked for, or PartlyDoneError where some of several failed.

    A meter that failed alike in all its associations failed once.
    """
    if failed and asked == 1 and failed[0].error is not None:
        raise failed[0].error
    if not failed:
        return
    kinds = {(item.system_title, type(item.error)) for item in failed}
    if len(failed) == asked and len(kinds) == 1 and failed[0].error is not None:
        raise failed[0].error
    first = f"{failed[0].system_title}: {failed[0].detail}"
    what = "associations" if any(item.association for item in failed) else "meters"
    if len(failed) == asked and not any(isinstance(item.error, PartlyDoneError) for item in failed):
        raise RefusedError(f"none of {asked} {what} is done: {first}", hint="see the detail of each")
    raise PartlyDoneError(
        f"{len(failed)} of {asked} {what} are not done: {first}",
        hint="those in doubt go on with: hsmkm resolve --all",
    )
