"""What befalls the meters of a fleet, decided by a seed: the same meter meets the same fate at the same exchange.

A fate rests on the seed, the meter's number and how many exchanges (or new keys) that meter had before, and on nothing
else: neither the order of connections nor another meter changes it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import StrEnum

from hsmkm.errors import InputError
from hsmkm.simulator.behaviour import Activation, Fault

_PLACE = struct.Struct(">QQ")
_DRAWS = struct.Struct(">IIII")
_ONE = 1 << 32


class Mishap(StrEnum):
    """How an exchange goes wrong on the way, or in the meter before it answers."""

    REBOOT = "reboot"
    REQUEST_LOST = "request-lost"
    ANSWER_LOST = "answer-lost"
    SILENCE = "silence"


@dataclass(frozen=True, slots=True)
class Chances:
    """How likely what is, 0 to 1 for each exchange, `fault` for each new key; `delay` in seconds, least and most.

    `loss` closes the connection, half of the time before the request is carried out and half of the time after;
    `silence` carries it out and leaves the connection open. Raises InputError for what is no chance.
    """

    loss: float = 0.0
    silence: float = 0.0
    reboot: float = 0.0
    fault: float = 0.0
    delay: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        every = (self.loss, self.silence, self.reboot, self.fault)
        if not all(0 <= chance <= 1 for chance in every) or self.loss + self.silence + self.reboot > 1:
            raise InputError("a chance is 0 to 1, and those of loss, silence and reboot are 1 together at most")
        least, most = self.delay
        if not 0 <= least <= most:
            raise InputError("a delay has a least, and a most that is not below it")


@dataclass(frozen=True, slots=True)
class Fate:
    """What befalls one exchange, and by how many seconds its answer is late."""

    mishap: Mishap | None
    delay: float


class Fates:
    """The fates of all meters of a seed."""

    def __init__(self, seed: int, chances: Chances) -> None:
        self._key = hashlib.sha256(str(seed).encode()).digest()
        self._chances = chances

    def exchange(self, meter: int, count: int) -> Fate:
        """Say what befalls a meter's exchange after so many others."""
        chances = self._chances
        which, late, *_ = self._draw(b"exchange", meter, count)
        least, most = chances.delay
        return Fate(self._mishap(which), least + (most - least) * late)

    def new_key(self, meter: int, count: int) -> Fault | None:
        """Say how a meter's next new keys go wrong, if they do."""
        whether, which, *_ = self._draw(b"new key", meter, count)
        every = tuple(Fault)
        return every[int(which * len(every))] if whether < self._chances.fault else None

    def character(self, meter: int) -> tuple[Activation, bool]:
        """Say when a meter's new keys become effective, and whether its counters restart with a new GUEK."""
        which, restarts, *_ = self._draw(b"character", meter, 0)
        every = tuple(Activation)
        return every[int(which * len(every))], restarts < 1 / 2

    def _mishap(self, draw: float) -> Mishap | None:
        chances = self._chances
        bounds = (
            (chances.reboot, Mishap.REBOOT),
            (chances.loss / 2, Mishap.REQUEST_LOST),
            (chances.loss / 2, Mishap.ANSWER_LOST),
            (chances.silence, Mishap.SILENCE),
        )
        for chance, mishap in bounds:
            if draw < chance:
                return mishap
            draw -= chance
        return None

    def _draw(self, what: bytes, meter: int, count: int) -> tuple[float, ...]:
        """Give four numbers from 0 to below 1."""
        place = _PLACE.pack(meter, count)
        digest = hashlib.blake2b(place, digest_size=_DRAWS.size, key=self._key, person=what).digest()
        return tuple(number / _ONE for number in _DRAWS.unpack(digest))
