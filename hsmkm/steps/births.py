"""New key sets in bulk: what a worker makes of a batch of meters, ready for the store and the injection package.

For one key set: 18 calls of the token, none of which asks for a length, and 4 more for an LLS or HLS secret. A worker
imports this and little else of the steps: it has neither store nor peers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hsmkm.packages.bulk import EntryWriter, is_usual
from hsmkm.packages.content import MeterEntry, Purpose
from hsmkm.steps.hands import Hand
from hsmkm.store.key_set import IDENTITY_OCTETS
from hsmkm.store.key_set_bulk import Form, FormEncoder
from hsmkm.token.births import Births, Carrier, NewKey
from hsmkm.token.types import Sealed

RANDOM_OCTETS = 10
"""Of an identity; the rest says when it was made."""


@dataclass(frozen=True, slots=True)
class Made:
    """Key sets of one form, in the order of their meters.

    `keys` are the numbers of the storage and integrity keys; `sets` are (keys as they are stored, MAC); `entries` are
    what travels to the line, one text, and `probes` those of them that are to be read back.
    """

    form: Form
    keys: tuple[int, int]
    sets: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    entries: str = field(repr=False)
    probes: tuple[str, ...] = field(repr=False)


def make_key_sets(
    hand: Hand, lent: Sealed, forms: tuple[Form, ...], meters: Sequence[tuple[bytes, str]]
) -> tuple[Made, ...]:
    """Make the key sets of meters (system title, serial number), in each form, under a package key that was lent."""
    with hand.vault.borrow(lent) as package_key:
        return tuple(
            make_under(hand, package_key, form, meters, EntryWriter(Purpose.INJECTION, entry_of(form), form.keys))
            for form in forms
        )


class Writer(Protocol):
    """Writes what travels to the line of one meter; `between` stands between two of them."""

    between: str

    def write(self, system_title: bytes, serial: str, identities: bytes, travelling: bytes) -> str:
        """Write the keys of a meter: their identities (16 octets each) and wrapped keys, in the order of the form."""


def make_under(hand: Hand, carrier: Carrier, form: Form, meters: Sequence[tuple[bytes, str]], writer: Writer) -> Made:
    """Make the key sets of meters in one form, the master keys wrapped under a carrier for the line."""
    whole = IDENTITY_OCTETS * len(form.keys)
    identities = new_identities(len(form.keys) * len(meters))
    sets, entries, probes = [], [], []
    new_keys = tuple(NewKey(role, octets) for role, octets in form.keys)
    with Births(hand.vault, new_keys, carrier, own_session=hand.own_sessions) as births:
        encoder = FormEncoder(form, births.storage_key, births.integrity_key)
        for number, (title, serial) in enumerate(meters):
            sealed, travelling = births.make()
            born = identities[number * whole : (number + 1) * whole]
            stored, covered = encoder.encode(title, serial, born, sealed)
            sets.append((stored, births.mac(covered)))
            entry = writer.write(title, serial, born, travelling)
            entries.append(entry)
            if not number or not is_usual(serial):
                probes.append(entry)
        numbers = births.storage_key, births.integrity_key
    return Made(form, numbers, tuple(sets), writer.between.join(entries), tuple(probes))


def new_identities(count: int) -> bytes:
    """Make identities of keys, 16 octets each, that rise with time as UUIDs of version 7 do (RFC 9562, section 5.7).

    6 octets are the moment in milliseconds and 10 are random. Rows that are kept by identity then come to lie side by
    side; with random ones, each row of a million meters' holders and counters changes a page of its own.
    """
    moment = (time.time_ns() // 1_000_000).to_bytes(IDENTITY_OCTETS - RANDOM_OCTETS, "big")
    random = secrets.token_bytes(RANDOM_OCTETS * count)
    return b"".join([moment + random[at : at + RANDOM_OCTETS] for at in range(0, len(random), RANDOM_OCTETS)])


def entry_of(form: Form) -> MeterEntry:
    """Give an entry of the form, without what is each meter's own."""
    return MeterEntry(
        system_title=b"",
        serial="",
        model=form.model,
        suite=form.suite,
        security_setup=form.security_setup,
        client=form.client,
        generation=form.generation,
        state=form.state.value,
    )
