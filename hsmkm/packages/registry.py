"""What the store knows that packages need: registered parties, the sequences taken, and the generations we hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cryptography import x509

from hsmkm.errors import RefusedError
from hsmkm.packages.content import MeterEntry, Peer
from hsmkm.packages.receive import Opened, Sender
from hsmkm.packages.send import Recipient
from hsmkm.pki.certificates import parse_certificate
from hsmkm.pki.slots import P256, SLOTS, Slot
from hsmkm.store import certificates, key_sets, meters, packages, parties
from hsmkm.store.holders import Place
from hsmkm.store.meter import Meter
from hsmkm.store.store import Transaction

PACKAGE_SIGNING = tuple(one.name for one in SLOTS if one.profile == "package-signing")
"""The slots of which a party signs packages and receipts, one on each curve."""


class StoreRegistry:
    """The registry of `receive.open_package`, over a transaction of the store."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._meters: dict[bytes, Meter | None] = {}
        self._generations: dict[tuple[bytes, int, int], list[int]] = {}

    def sender(self, pinned: bytes) -> Sender | None:
        """Return the party whose package-signing certificate has this SHA-256, or None."""
        found = (parties.by_certificate(self._tx, name, pinned) for name in PACKAGE_SIGNING)
        party = next((one for one in found if one is not None), None)
        if party is None:
            return None
        return Sender(party.name, party.role, party.system_title or b"", party.flags)

    def last_sequence(self, sender: str, purpose: str) -> int:
        """Return the sequence of the last package taken from this party for this purpose; 0 where there was none."""
        return packages.last_sequence(self._tx, sender, purpose)

    def look_up(self, titles: Sequence[bytes]) -> None:
        """Read what is known of these meters at once; what is asked of others is read when it is asked."""
        self._meters = dict.fromkeys(titles) | meters.of_titles(self._tx, titles)
        self._generations = key_sets.generations_of(self._tx, titles)

    def newest_generation(self, system_title: bytes, security_setup: int, client: int) -> int | None:
        """Return the newest generation that we have keys of, or None."""
        if system_title in self._meters:
            found = self._generations.get((system_title, security_setup, client), [])
        else:
            found = key_sets.generations(self._tx, system_title, security_setup, client)
        return found[-1] if found else None

    def meter(self, system_title: bytes) -> Meter | None:
        """Return the meter as we know it, or None."""
        if system_title in self._meters:
            return self._meters[system_title]
        return meters.get(self._tx, system_title)


def registered_recipient(
    tx: Transaction, name: str, chain: Sequence[x509.Certificate] = (), curve: str = P256
) -> Recipient:
    """Return a registered party with its pinned key-agreement certificate; raise RefusedError where it has none."""
    party = parties.require(tx, name)
    slot = Slot("key-agreement", curve).name
    pinned = party.certificates.get(slot)
    record = certificates.get(tx, pinned) if pinned else None
    if record is None:
        raise RefusedError(f"no {slot} certificate is registered for {name}", hint="hsmkm party add")
    certificate = parse_certificate(record.der, f"the {slot} certificate of {name}")
    return Recipient(Peer(party.name, party.role, party.system_title or b""), certificate, tuple(chain))


def pinned_signers(tx: Transaction, name: str) -> tuple[bytes, ...]:
    """Return the SHA-256 of the package-signing certificates of which a party's receipts must carry one."""
    party = parties.require(tx, name)
    pinned = tuple(party.certificates[slot] for slot in PACKAGE_SIGNING if slot in party.certificates)
    if not pinned:
        raise RefusedError(f"no package-signing certificate is registered for {name}", hint="hsmkm party add")
    return pinned


def given_by(entries: Iterable[MeterEntry]) -> Iterator[tuple[Place, Sequence[bytes]]]:
    """Return what `holders.add_sets` notes of entries: the place of each key set, and the identities of its keys."""
    return ((entry.name, [key.identity for key in entry.keys]) for entry in entries if entry.keys)


def store_opened(tx: Transaction, opened: Opened) -> None:
    """Store the meters and key sets of an opened package, and who gave them; the caller adds the package's row with it.

    Raises RefusedError where a key set came in meanwhile, and then nothing of the package is stored.
    """
    present = meters.present(tx, [received.meter.system_title for received in opened.meters])
    bare: list[Meter] = []
    for received in opened.meters:
        meter = received.meter
        if meter.system_title in present:
            continue
        present.add(meter.system_title)
        changed = (meter.address, meter.concentrator, meter.registered, meter.state) != (None, None, None, None)
        if received.taken is None or changed:
            meters.add(tx, meter, own_mac=received.taken is None)
        else:
            bare.append(meter)
    meters.add_many(tx, bare)
    for new in opened.new_sets:
        key_sets.add_bulk(tx, new.form, new.keys, new.sets)
    opened.giving.note(tx)
