"""Who was ever given a key: from the packages that were sent and taken here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from hsmkm.errors import RefusedError
from hsmkm.store import holders, key_sets, key_states, meters, packages, pages, parties
from hsmkm.store.key_set import IDENTITY_OCTETS, KeySetRef, KeyState
from hsmkm.store.packages import Direction
from hsmkm.store.store import Store, Transaction

GONE = "?"
METERS_OF_A_PAGE = 100


@dataclass(frozen=True, slots=True)
class Knower:
    """A party that was given a key, or that we have it from, and in which package; the role of a destroyed key is `?`.

    `result` is what became of the package: sent, accepted or refused by its recipient, or taken here.
    """

    identity: str
    role: str
    ref: KeySetRef
    state: str
    party: str
    party_role: str
    package: str
    result: str
    given: datetime | None


def known_to(store: Store, text: str) -> Iterator[Knower]:
    """List who knows the keys of a meter, by title or serial number, or one key, by its identity in hex.

    Many meters may have one key, so these are read in pages, by title. Raises RefusedError where there is no such
    meter or key.
    """
    identity = _identity(text)
    if identity is None:
        with store.read() as tx:
            found = _knowers(tx, holders.for_meter(tx, meters.find(tx, text).system_title))
        yield from found
        return

    def page(tx: Transaction, behind: bytes) -> list[Knower]:
        return _knowers(tx, holders.for_key(tx, identity, after=behind, meters=METERS_OF_A_PAGE))

    knower = None
    for knower in pages.every(store, page, b"", lambda item: item.ref.system_title):
        yield knower
    if knower is None:
        raise RefusedError(f"nobody was given a key of identity {text}", hint="hsmkm key holders METER")


def _knowers(tx: Transaction, found: Iterable[holders.Holder]) -> list[Knower]:
    return sorted(
        (_knower(tx, item) for item in found), key=lambda item: (item.ref, str(item.given), item.party, item.role)
    )


def _identity(text: str) -> bytes | None:
    try:
        identity = bytes.fromhex(text)
    except ValueError:
        return None
    return identity if len(identity) == IDENTITY_OCTETS else None


def _knower(tx: Transaction, item: holders.Holder) -> Knower:
    role, state = _role_and_state(tx, item)
    party, package = parties.get(tx, item.party), packages.get(tx, item.package_id)
    result = ""
    if package is not None:
        result = "from them" if package.direction is Direction.RECEIVED else package.state
    known = party.role if party else GONE
    return Knower(item.identity.hex(), role, item.ref, state, item.party, known, item.package_id, result, item.given)


def _role_and_state(tx: Transaction, item: holders.Holder) -> tuple[str, str]:
    for key_set, state in key_sets.for_meter(tx, item.ref.system_title):
        if key_set.ref == item.ref:
            roles = [key.role.value for key in key_set.keys if key.identity == item.identity]
            return (roles or [GONE])[0], state.value
    return GONE, (key_states.recorded(tx, item.ref) or KeyState.DESTROYED).value
