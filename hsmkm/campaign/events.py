"""What a worker tells its owner of a campaign: plain values, which load nothing of what the worker needs."""

from __future__ import annotations

from dataclasses import dataclass

from hsmkm.campaign.plan import Finish, Rest, Stop, Wait
from hsmkm.store.campaign import Standing


@dataclass(frozen=True, slots=True)
class Claimed:
    """A slice was claimed, or taken over from a worker that left it."""

    campaign: str
    meters: int
    taken_over: bool


@dataclass(frozen=True, slots=True)
class Worked:
    """An attempt on a meter ended."""

    campaign: str
    meter: str
    state: Standing
    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    """This worker takes no slice of a campaign, for these reasons."""

    campaign: str
    message: str
    reasons: tuple[str, ...]


Event = Claimed | Worked | Refused | Finish | Rest | Stop | Wait
