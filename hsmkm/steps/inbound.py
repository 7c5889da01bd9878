"""Key sets on their way in, in bulk: a party's workers as the labour that opens a package.

A worker imports this and little else of the steps: it has neither store nor peers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass

from hsmkm.packages.taking import Arriving, Carried, Taken, take_key_sets
from hsmkm.steps.hands import Hand, Hands


@dataclass(frozen=True, slots=True)
class HandsLabour:
    """Lets a party's workers take the sets of a package; each opens the package's key for itself."""

    hands: Hands

    @property
    def batch(self) -> int:
        """How many sets are handed over together."""
        return self.hands.shape.batch

    def take(self, sets: int, carried: Carried, arriving: Iterable[Arriving]) -> Generator[Taken, None, None]:
        """Let workers do as `take_key_sets` for each lot."""
        return self.hands.work(sets, take_arriving, ((carried, lot) for lot in arriving))


def take_arriving(hand: Hand, carried: Carried, arriving: Arriving) -> Taken:
    """Bring one lot under our storage keys."""
    with carried.open(hand.vault) as package_key:
        return take_key_sets(hand.vault, package_key, arriving, own_session=hand.own_sessions)
