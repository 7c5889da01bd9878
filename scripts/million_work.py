"""What scripts/million has parties do in their workers, besides the steps themselves: costs of single meters."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hsmkm.dlms.types import AttributeRef, LogicalName
from hsmkm.errors import RefusedError
from hsmkm.steps.communicate import active_key_set, associated, conversation, find_meter, read
from hsmkm.steps.credentials import Pair
from hsmkm.steps.in_advance import register_in_advance
from hsmkm.steps.party import Party
from hsmkm.steps.places import read_places
from hsmkm.steps.renew import renew
from hsmkm.steps.results import Told
from hsmkm.store import holders, key_sets, key_states, meters
from hsmkm.store.key_set import KeyState
from hsmkm.token.types import KeyRole

ENERGY = AttributeRef(3, LogicalName.parse("1.0.1.8.0.255"), 2)
ROLES = (KeyRole.GUEK, KeyRole.GAK)


def process(_party: Party) -> int:
    """Name the party's process."""
    return os.getpid()


def told(party: Party, places: Path, concentrator: str) -> list[Path]:
    """Register meters in advance and give the packages, whose receipts nobody waits for; RefusedError for a failure."""
    found = list(register_in_advance(party, places, concentrator, 0))
    failed = [item for item in found if not isinstance(item, Told) or item.state == "refused"]
    if failed:
        raise RefusedError(f"{len(failed)} are not registered: {failed[0]}")
    return [item.sent.path for item in found if isinstance(item, Told)]


def put_in_force(party: Party, places: Path) -> None:
    """Let meters of a fleet be reached directly, and their keys be in force, as an injection leaves them."""
    with party.store.begin("meters-in-force", places.name, {}) as tx:
        for name, address in read_places(places):
            meter = meters.find(tx, name)
            newest = key_sets.for_meter(tx, meter.system_title)[-1]
            if newest[1] is KeyState.PRE_ACTIVE:
                key_states.transition(tx, newest[0].ref, KeyState.ACTIVE)
            meters.update(tx, replace(meter, address=address, concentrator=None))


def holders_seconds(party: Party, titles: Sequence[str]) -> list[float]:
    """Say who was given the keys of each meter; how long each took."""
    found = []
    for title in titles:
        began = time.perf_counter()
        with party.store.read() as tx:
            given = holders.for_meter(tx, bytes.fromhex(title))
        found.append(time.perf_counter() - began)
        if not given:
            raise RefusedError(f"nobody was given the keys of {title}")
    return found


def renewal_seconds(party: Party, titles: Sequence[str]) -> list[float]:
    """Renew meters one after the other; how long each took."""
    found = []
    for title in titles:
        began = time.perf_counter()
        (outcome,) = renew(party, [title], ROLES)
        found.append(time.perf_counter() - began)
        if outcome.error is not None:
            raise outcome.error
    return found


def exchange_seconds(party: Party, titles: Sequence[str]) -> list[float]:
    """Read one attribute of each meter in an association of its own; how long each took."""
    found = []
    for title in titles:
        began = time.perf_counter()
        read(party, title, (ENERGY,))
        found.append(time.perf_counter() - began)
    return found


def apdu_seconds(party: Party, title: str, count: int) -> list[float]:
    """Send so many protected requests in one association, each answered; how long each took."""
    found = []
    meter = find_meter(party, title)
    with conversation(party, meter) as speaking:
        key_set = active_key_set(party, meter, speaking.model)
        with associated(replace(speaking, defers=True), Pair.in_force(key_set)) as client:
            for _ in range(count):
                began = time.perf_counter()
                client.get(ENERGY)
                found.append(time.perf_counter() - began)
    return found
