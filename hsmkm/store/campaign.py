"""A campaign as values: work over many meters, where it stands, where each meter in it stands, and the only ways on.

    created   -> running, cancelled
    running   -> paused, stopped (by itself), finished, cancelled
    paused    -> running, cancelled
    stopped   -> running, cancelled
    finished  -> (nothing)
    cancelled -> (nothing)

A meter of a campaign:

    waiting   -> claimed
    claimed   -> done, failed, unknown, gave-up, skipped; waiting, failed, unknown (given back before it was begun)
    failed    -> claimed (it waits for its next attempt)
    unknown   -> claimed (what it holds is not known: the next attempt resolves it)
    done, gave-up, skipped -> (nothing)

A cancelled campaign leaves its meters as they stand: the report names each that is not done, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class CampaignState(StrEnum):
    """Where a campaign stands."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FINISHED = "finished"
    CANCELLED = "cancelled"


class Standing(StrEnum):
    """Where a meter stands in a campaign."""

    WAITING = "waiting"
    CLAIMED = "claimed"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    GAVE_UP = "gave-up"
    SKIPPED = "skipped"


_C = CampaignState
EDGES: Mapping[CampaignState, frozenset[CampaignState]] = {
    _C.CREATED: frozenset({_C.RUNNING, _C.CANCELLED}),
    _C.RUNNING: frozenset({_C.PAUSED, _C.STOPPED, _C.FINISHED, _C.CANCELLED}),
    _C.PAUSED: frozenset({_C.RUNNING, _C.CANCELLED}),
    _C.STOPPED: frozenset({_C.RUNNING, _C.CANCELLED}),
    _C.FINISHED: frozenset(),
    _C.CANCELLED: frozenset(),
}

_S = Standing
METER_EDGES: Mapping[Standing, frozenset[Standing]] = {
    _S.WAITING: frozenset({_S.CLAIMED}),
    _S.CLAIMED: frozenset({_S.WAITING, _S.DONE, _S.FAILED, _S.UNKNOWN, _S.GAVE_UP, _S.SKIPPED}),
    _S.FAILED: frozenset({_S.CLAIMED}),
    _S.UNKNOWN: frozenset({_S.CLAIMED}),
    _S.DONE: frozenset(),
    _S.GAVE_UP: frozenset(),
    _S.SKIPPED: frozenset(),
}
LEFT = (_S.UNKNOWN, _S.FAILED, _S.WAITING)
"""The states from which a meter is claimed, in this order: what is in doubt first."""

Counts = Mapping[Standing, int]


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign; `settings` as it was created, `reason` why it stands where it does.

    `paced` is the moment before which the rate allows no further meter. `failed_before` and `done_before` are how many
    meters had failed and were done when it was started last: the limit of failures counts from there.
    """

    id: int
    name: str
    kind: str
    state: CampaignState
    settings: Mapping[str, object]
    reason: str
    paced: datetime
    failed_before: int
    done_before: int
    created: datetime
    updated: datetime


@dataclass(frozen=True, slots=True)
class CampaignMeter:
    """A meter of a campaign; `above` is the generation of its keys that was in force when the campaign was made."""

    system_title: bytes
    state: Standing
    attempts: int
    not_before: datetime
    above: int
    outcome: str

    @property
    def title(self) -> str:
        """The system title as 16 capital hex digits."""
        return self.system_title.hex().upper()


@dataclass(frozen=True, slots=True)
class Slice:
    """Meters that one worker claimed together, as long as no slice of this id has a higher fence."""

    id: int
    campaign: int
    fence: int
    meters: tuple[CampaignMeter, ...]
