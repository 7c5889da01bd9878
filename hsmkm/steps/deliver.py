"""Step 3, and every other way keys leave: packages are built, recorded with who was given what, and written.

A package's file is synced under a temporary name before the transaction that speaks of it, and renamed after it;
`outbox` finishes what a crash left between the two. One process at a time writes packages, so that sequences rise
and a file under its temporary name is never another's work in progress.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

from hsmkm.durable_file import sync_folder
from hsmkm.errors import PolicyError, RefusedError
from hsmkm.packages.content import PackageHeader, Purpose
from hsmkm.packages.receipt import open_receipt
from hsmkm.packages.registry import given_by, pinned_signers, registered_recipient
from hsmkm.packages.send import (
    Outgoing,
    Package,
    Recipient,
    Signatory,
    build_package,
    check_receipt,
    new_header,
)
from hsmkm.pki.slots import P256, Slot, curve_for
from hsmkm.pki.trust import TrustStore
from hsmkm.steps.certify import own_chain, trust_of
from hsmkm.steps.first_package import check_recipient, require_recipient
from hsmkm.steps.handed_over import end_transfer
from hsmkm.steps.meter_certificates import accepted_certificates
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.results import Sent
from hsmkm.store import holders, key_sets, models, packages, renewals
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.store.meter import Meter
from hsmkm.store.packages import Direction, PackageRecord
from hsmkm.store.store import Transaction
from hsmkm.token.signer import TokenSigner

SENT = "sent"
ACCEPTED = "accepted"
REFUSED = "refused"
PARTIAL = ".partial"

_InForce: TypeAlias = list[tuple[KeySet, KeyState]]
"""Key sets of a meter, each with its state."""


def signatory(party: Party, curve: str = P256) -> Signatory:
    """Take this party's package-signing key on a curve, and its certificate."""
    slot = Slot("package-signing", curve).name
    leaf, *chain = own_chain(party, slot)
    settings = party.settings.party
    signer = TokenSigner(party.vault, slot)
    return Signatory(settings.role, bytes.fromhex(settings.system_title), signer, leaf, tuple(chain))


def recipient(party: Party, name: str, curve: str = P256) -> Recipient:
    """Take a registered party with its pinned key-agreement certificate; RefusedError where either is missing."""
    with party.store.read() as tx:
        return registered_recipient(tx, name, curve=curve)


def header_for(party: Party, purpose: Purpose, sender: Signatory, to: Recipient, *, after: int = 0) -> PackageHeader:
    """Begin a package with the next sequence for this recipient and purpose, after others that are not recorded yet."""
    with party.store.read() as tx:
        sequence = packages.next_sequence(tx, to.peer.name, purpose.value)
    lifetime = timedelta(days=party.settings.policy.package_days)
    return new_header(purpose, sequence + after, sender.peer, to.peer, utc_now(), lifetime)


def nothing_else(_tx: Transaction) -> None:
    """Record the package alone."""


def send(
    party: Party,
    purpose: Purpose,
    to: str,
    content: Sequence[Outgoing],
    also: Callable[[Transaction], None] = nothing_else,
    approval: str = "",
) -> Sent:
    """Build a package for a registered party, record it, together with `also`, and write it to HOME/packages.

    One meter of suite 2 in it takes the keys of both parties on P-384; all else goes on P-256.
    """
    curve = curve_for(item.entry.suite for item in content)
    if any(item.key_set is not None for item in content):
        check_recipient(party, to, approval)
    with outbox(party):
        sender, receiver = signatory(party, curve), recipient(party, to, curve)
        header = header_for(party, purpose, sender, receiver)
        package = build_package(party.vault, trust_of(party), sender, receiver, header, content)
        return record(party, package, also, approval)


@contextmanager
def outbox(party: Party, *, wait: bool = True) -> Iterator[None]:
    """Be the one process that numbers and writes packages here, after finishing what a crash left.

    Without `wait` nothing is done while another process is at it, and the caller must write nothing.
    """
    (party.home / "packages").mkdir(mode=0o700, exist_ok=True)
    with (party.home / "packages.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield
            return
        for partial in _partial_files(party):
            _finish(party, partial)
        yield


def _partial_files(party: Party) -> list[Path]:
    return sorted((party.home / "packages").glob(f"*{PARTIAL}"))


def _finish(party: Party, partial: Path) -> None:
    path = partial.with_name(partial.name.removesuffix(PARTIAL))  # ID.p7m, or ID.jsonl of injection records
    with party.store.read() as tx:
        known = packages.get(tx, path.stem)
    if known is not None and known.sha256 == hashlib.sha256(partial.read_bytes()).digest():
        partial.rename(path)
    else:
        partial.unlink()


def record(party: Party, package: Package, also: Callable[[Transaction], None], approval: str = "") -> Sent:
    """Write a package's file and, in one transaction with `also`, the record of it and of who is given what.

    Runs within the `outbox` in which the package got its number.
    """
    carries_keys = any(entry.keys for entry in package.meters)
    parcel = Parcel(package.header, package.meter_count, package.data, carries_keys=carries_keys)
    header = package.header

    def note_holders(tx: Transaction) -> None:
        holders.add_sets(tx, header.recipient.name, header.id, given_by(package.meters))

    return hand_out(party, parcel, also, note_holders, approval)


@dataclass(frozen=True, slots=True)
class Parcel:
    """A finished package as it is recorded and written: its header, how many meters it speaks of, and its octets."""

    header: PackageHeader
    meters: int
    data: bytes = field(repr=False)
    carries_keys: bool


def hand_out(
    party: Party,
    parcel: Parcel,
    also: Callable[[Transaction], None],
    note_holders: Callable[[Transaction], object],
    approval: str = "",
) -> Sent:
    """Write a package's file, and record it, with `also` before and `note_holders` after, as `record` does."""
    header = parcel.header
    path = _path(party, header.id)
    _write_partial(path, parcel.data)
    detail = {"purpose": header.purpose.value, "id": header.id, "meters": parcel.meters}
    made = _record(parcel)
    try:
        with party.store.begin("package-send", header.recipient.name, detail) as tx:
            if parcel.carries_keys:
                require_recipient(tx, party, header.recipient.name, approval)
            also(tx)
            packages.add(tx, made)
            note_holders(tx)
    except (PolicyError, RefusedError):
        path.with_name(path.name + PARTIAL).unlink()  # it was not recorded, and holds keys that nobody is to have
        raise
    path.with_name(path.name + PARTIAL).rename(path)
    sync_folder(path.parent)
    return sent_of(party, made)


def sent_of(party: Party, record: PackageRecord) -> Sent:
    """Tell of a package that was sent, as `send` does."""
    return Sent(record.id, record.purpose, record.peer, _path(party, record.id), record.meters)


def _path(party: Party, package_id: str) -> Path:
    return party.home / "packages" / f"{package_id}.p7m"


def _record(parcel: Parcel) -> PackageRecord:
    header = parcel.header
    return PackageRecord(
        id=header.id,
        direction=Direction.SENT,
        purpose=header.purpose.value,
        sequence=header.sequence,
        peer=header.recipient.name,
        created=header.created,
        expires=header.expires,
        sha256=hashlib.sha256(parcel.data).digest(),
        state=SENT,
        meters=parcel.meters,
    )


def _write_partial(path: Path, data: bytes) -> None:
    with path.with_name(path.name + PARTIAL).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def with_certificates(tx: Transaction, trust: TrustStore, item: Outgoing) -> Outgoing:
    """Give a meter's certificates along with it, where it is of a suite that has them."""
    entry = item.entry
    if entry.suite == 0:
        return item
    title = entry.system_title.hex().upper()
    return replace(item, entry=replace(entry, certificates=accepted_certificates(tx, trust, title, entry.suite)))


def exportable(tx: Transaction, wanted: Sequence[Meter]) -> list[_InForce | str]:
    """Give each meter's key sets in force, one for each association that has any, or say why it is not given."""
    busy = busy_meters(tx, wanted)
    held = key_sets.for_meters(tx, [meter.system_title for meter in wanted if meter.system_title not in busy])
    initial = {model: models.initial_identities(tx, model) for model in sorted({meter.model for meter in wanted})}
    return [
        busy.get(meter.system_title) or _in_force(meter, held.get(meter.system_title, []), initial[meter.model])
        for meter in wanted
    ]


def busy_meters(tx: Transaction, wanted: Sequence[Meter]) -> dict[bytes, str]:
    """Say of meters, by system title, why they are not given whatever keys they have."""
    in_doubt = renewals.under_way(tx, [meter.system_title for meter in wanted])
    busy = {meter.system_title: f"meter {meter.title}: it is {meter.at_rest}" for meter in wanted if meter.at_rest}
    for meter in wanted:
        if meter.system_title in in_doubt and meter.at_rest is None:
            busy[meter.system_title] = f"meter {meter.title}: its keys are in doubt, a renewal is not finished"
    return busy


def _in_force(meter: Meter, held: _InForce, initial: set[bytes]) -> _InForce | str:
    chosen = in_force(meter, [(item.ref.security_setup, item.ref.client, state) for item, state in held])
    if isinstance(chosen, str):
        return chosen
    found = [held[place] for place in chosen]
    if not initial.isdisjoint(key.identity for key_set, _ in found for key in key_set.keys):
        return not_injected(meter)
    return found


def in_force(meter: Meter, held: Sequence[tuple[int, int, KeyState]]) -> list[int] | str:
    """Tell which of a meter's key sets are in force, one for each association that has any, or why it is not given.

    They are told by security setup, client and state, in the order of their generations.
    """
    found: dict[tuple[int, int], int] = {}
    lost: set[tuple[int, int]] = set()
    for number, (setup, client, state) in enumerate(held):
        place = setup, client
        if state is KeyState.COMPROMISED:
            lost.add(place)
        is_active = place in found and held[found[place]][2] is KeyState.ACTIVE
        if state is KeyState.ACTIVE or (state is KeyState.PRE_ACTIVE and not is_active):
            found[place] = number
    if any(place not in found or held[found[place]][2] is not KeyState.ACTIVE for place in lost):
        return f"meter {meter.title}: its keys are compromised, hsmkm renew --urgent replaces them"
    if not found:
        return f"meter {meter.title}: there are no keys in force"
    return [found[place] for place in sorted(found)]


def not_injected(meter: Meter) -> str:
    """Say why a meter with its model's initial keys is not given."""
    return f"meter {meter.title}: it still holds keys that its model comes with, inject it"


def accept_receipt(party: Party, data: bytes, expected: str = "") -> tuple[PackageRecord, bool]:
    """Check a recipient's receipt and keep it; the package's record, and whether the receipt was kept before.

    `expected` is the id of the package it must be for, where the caller knows.

    A factory's key sets are then due for destruction after the retention time. Raises InputError, IntegrityError or
    RefusedError with every reason; nothing is changed then.
    """
    named = open_receipt(data)[0].package
    with party.store.read() as tx:
        package = packages.get(tx, named)
        if package is None or package.direction is not Direction.SENT or expected not in ("", named):
            raise RefusedError(f"the receipt is for package {named}, which was not sent from here")
        pinned = pinned_signers(tx, package.peer)
    receipt = check_receipt(data, package.id, package.sha256, trust_of(party), pinned, utc_now())
    if package.receipt == data:
        return package, True
    state = ACCEPTED if receipt.accepted else REFUSED
    with party.store.begin("package-receipt", package.peer, {"id": package.id, "result": state}) as tx:
        packages.set_receipt(tx, package.id, data, state)
        end_transfer(party, tx, package, accepted=receipt.accepted)
        if receipt.accepted and party.settings.party.role == "factory":
            _retain(party, tx, package)
        kept = packages.get(tx, package.id)
    return kept or package, False


def _retain(party: Party, tx: Transaction, package: PackageRecord) -> None:
    due = utc_now() + timedelta(days=party.settings.policy.retention_days)
    if package.purpose != Purpose.DELIVERY.value:
        return
    key_sets.set_all_destroy_after(tx, {item.ref for item in holders.of_package(tx, package.id)}, due)
