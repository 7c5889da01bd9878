"""Key sets on their way out in bulk: what a worker makes of a batch that is stored, ready for a package.

For a key set of four keys: 2 calls of the token for its MAC, which is verified before anything is unwrapped, and 3 for
each key that is given. A worker imports this and little else of the steps: it has neither store nor peers.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from hsmkm.packages.bulk import EntryWriter, is_usual
from hsmkm.packages.content import MeterEntry, Purpose
from hsmkm.steps.hands import Hand
from hsmkm.store.key_set_bulk import Kind
from hsmkm.token.keys import KeyHandle
from hsmkm.token.moves import Move, Moves
from hsmkm.token.types import MeterRole, Sealed

Stored: TypeAlias = tuple[bytes, str, bytes, bytes, int]
"""A set: system title, serial number, keys as they are stored, MAC, and which of the entries it is like."""


@dataclass(frozen=True, slots=True)
class Lot:
    """Sets of one kind that go out together, of each the keys of some roles; `likes` are entries without its own."""

    purpose: Purpose
    kind: Kind
    roles: frozenset[MeterRole]
    likes: tuple[MeterEntry, ...]
    sets: tuple[Stored, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Given:
    """What became of a lot: its entries, one text, with those that are to be read back, and each set's keys as given.

    `misfits` are the places of sets whose MAC does not fit; then there is nothing else.
    """

    entries: str = field(repr=False)
    probes: tuple[str, ...] = field(repr=False)
    travelling: tuple[bytes, ...] = field(repr=False)
    misfits: tuple[int, ...] = ()


def give_key_sets(hand: Hand, lent: Sealed, lot: Lot) -> Given:
    """Verify the sets of a lot, and wrap their keys under a package key that was lent."""
    misfits = _misfits(hand, lot)
    if misfits:
        return Given("", (), (), misfits)
    with hand.vault.borrow(lent) as package_key:
        return _give(hand, lot, package_key)


def _misfits(hand: Hand, lot: Lot) -> tuple[int, ...]:
    encoder, make = lot.kind.encoder(), hand.vault.macs(lot.kind.integrity_key).make
    return tuple(
        number
        for number, (title, serial, stored, mac, _) in enumerate(lot.sets)
        if not hmac.compare_digest(make(encoder.covered(title, serial, stored)), mac)
    )


def _give(hand: Hand, lot: Lot, package_key: KeyHandle) -> Given:
    form = lot.kind.form
    given = [place for place, (role, _) in enumerate(form.keys) if role in lot.roles]
    keys = [form.keys[place] for place in given]
    wrapped_at, identity_at = ([form.slices(identity=what)[place] for place in given] for what in (False, True))
    writers = [EntryWriter(lot.purpose, like, keys) for like in lot.likes]
    entries, probes, travelling = [], [], []
    unread = set(range(len(writers)))
    with Moves(hand.vault, _moves(hand, lot.kind, keys, package_key), own_session=hand.own_sessions) as moves:
        for title, serial, stored, _, like in lot.sets:
            moved = moves.move(b"".join([stored[at] for at in wrapped_at]))
            entry = writers[like].write(title, serial, b"".join([stored[at] for at in identity_at]), moved)
            entries.append(entry)
            travelling.append(moved)
            if like in unread or not is_usual(serial):
                probes.append(entry)
                unread.discard(like)
    return Given(",".join(entries), tuple(probes), tuple(travelling))


def _moves(hand: Hand, kind: Kind, keys: Sequence[tuple[MeterRole, int]], package_key: KeyHandle) -> list[Move]:
    vault, target = hand.vault, package_key.number()
    return [Move(role, octets, vault.storage_handle(role, kind.storage_key), target) for role, octets in keys]
