"""How work on many meters ends: a row for each, and the exit code of the gravest."""

from __future__ import annotations

from collections.abc import Sequence

from hsmkm.cli.frame import show
from hsmkm.errors import PartlyDoneError
from hsmkm.steps.renew import Outcome


def show_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Show every outcome; raises the error of a single meter, PartlyDoneError where some of several failed."""
    rows = [
        {"meter": item.system_title, "state": item.state, "generation": item.generation or None, "detail": item.detail}
        for item in outcomes
    ]
    show(rows, ("meter", "state", "generation", "detail"))
    failed = [item for item in outcomes if item.error is not None]
    if failed and len(outcomes) == 1 and failed[0].error is not None:
        raise failed[0].error
    if failed:
        raise PartlyDoneError(
            f"{len(failed)} of {len(outcomes)} meters are not done",
            hint="those in doubt go on with: hsmkm resolve --all",
        )
