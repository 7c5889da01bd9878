"""A meter that is suspended, transferred or destroyed is not spoken with: not read, renewed, nor broadcast to."""

from __future__ import annotations

from collections.abc import Mapping

from hsmkm.errors import RefusedError
from hsmkm.store.meter import Meter, MeterState

HINTS: Mapping[MeterState, str] = {
    MeterState.SUSPENDED: "take it up again with: hsmkm meter resume {}",
    MeterState.TRANSFERRING: "its new owner has not receipted the package yet: hsmkm package list",
    MeterState.TRANSFERRED: "its new owner speaks with it",
    MeterState.WITHDRAWN: "its AIM gave it to another concentrator",
    MeterState.DESTROYED: "its keys are gone: see HOME/records",
}


def refuse_resting(meter: Meter) -> None:
    """Raise RefusedError for a meter that is not to be spoken with."""
    state = meter.at_rest
    if state is not None:
        raise RefusedError(
            f"meter {meter.title} is {state}: it is not spoken with", hint=HINTS[state].format(meter.title)
        )
