"""Step 4: a package is verified whole, its keys unwrapped into our token, and taken in one transaction; then receipted.

What is refused changes nothing. A package that was taken before is answered with its first receipt. The receipt is
signed after the package is recorded, so that nothing is acknowledged that is not durable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cryptography import x509

from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError, RefusedError
from hsmkm.packages.container import open_container
from hsmkm.packages.content import Peer, Purpose
from hsmkm.packages.receipt import receipt_for, sign_receipt
from hsmkm.packages.receive import (
    AgreementKey,
    Opened,
    PackageRefusedError,
    Receiver,
    open_package,
)
from hsmkm.packages.registry import StoreRegistry, store_opened
from hsmkm.packages.send import Signatory
from hsmkm.pki.certificates import parse_certificate, public_key
from hsmkm.pki.slots import P256, SLOTS, Slot, curve_of
from hsmkm.steps.certify import own_chain, own_path, trust_of
from hsmkm.steps.deliver import signatory
from hsmkm.steps.follow import follow
from hsmkm.steps.group_members import learn
from hsmkm.steps.handed_over import begin_ownership
from hsmkm.steps.inbound import HandsLabour
from hsmkm.steps.meter_certificates import check_meter_certificate, profile_of, take_meter_certificate
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.results import Taken
from hsmkm.store import packages
from hsmkm.store.packages import Direction, PackageRecord

TAKEN = "taken"
RECEIPTED = "receipted"
MAX_PACKAGE = 128 * 1024 * 1024

_Certified = tuple[x509.Certificate, str, str]
"""A meter's certificate with its title and profile."""


def read_package(path: Path) -> bytes:
    """Read a package file; InputError where it is missing or too large."""
    try:
        with path.open("rb") as file:
            octets = file.read(MAX_PACKAGE + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint="give the path of a .p7m file") from error
    if len(octets) > MAX_PACKAGE:
        raise InputError(f"{path} is above {MAX_PACKAGE} octets", hint="a package has at most 10,000 meters")
    return octets


def receive_file(party: Party, path: Path) -> Taken:
    """Take a package from a file."""
    return receive(party, read_package(path))


def receive(party: Party, data: bytes) -> Taken:
    """Take a package whole or not at all, and give its receipt; a replay gives the first receipt again.

    Raises InputError, IntegrityError, or PackageRefusedError with every reason.
    """
    known = _known(party, data)
    if known is not None:
        return _receipted(party, known, data)
    with party.store.read() as tx:
        registry, labour = StoreRegistry(tx), HandsLabour(party.hands)
        opened = open_package(party.vault, registry, _receiver(party), data, utc_now(), labour)
    certified = _certified(party, opened)
    try:
        record = _take(party, opened, certified)
    except RefusedError as error:
        package = opened.header.id
        raise PackageRefusedError(f"package {package} is refused", (error.message,), error.hint, package) from error
    return replace(_receipted(party, record, data), replayed=False)


def _known(party: Party, data: bytes) -> PackageRecord | None:
    """Find the record of these very octets, where they were taken before; nothing of them is read for it."""
    with party.store.read() as tx:
        known = packages.by_digest(tx, hashlib.sha256(data).digest())
    return known if known is not None and known.direction is Direction.RECEIVED else None


def receive_or_refuse(party: Party, data: bytes) -> bytes:
    """Take a package and give its receipt; one that is refused for good gets a signed receipt that says why.

    Raises InputError and IntegrityError for octets that were damaged on their way: the sender's own are still good.
    """
    try:
        return receive(party, data).receipt
    except PackageRefusedError as error:
        if not error.package:
            raise
        package, reasons = error.package, error.reasons
    sender, now = _answering(party, data), utc_now()
    receipt = receipt_for(package, data, reasons, now)
    with party.store.begin("package-refuse", receipt.package, {"reasons": list(receipt.reasons)}):
        pass
    return sign_receipt(receipt, sender.signer, sender.certificate, sender.chain, now)


def _receiver(party: Party) -> Receiver:
    settings = party.settings.party
    peer = Peer(settings.name, settings.role, bytes.fromhex(settings.system_title))
    labels = [one.name for one in SLOTS if one.profile == "key-agreement"]
    own = tuple(AgreementKey(label, own_chain(party, label)[0]) for label in labels if own_path(party, label).is_file())
    if not own:
        raise RefusedError(f"{settings.name} has no key-agreement certificate", hint="hsmkm pki install")
    return Receiver(peer, own, trust_of(party))


def _answering(party: Party, data: bytes) -> Signatory:
    """Take the package-signing key on the curve on which a package is signed; where we have none there, on P-256."""
    curve = curve_of(public_key(open_container(data).signer))
    return signatory(party, curve if own_path(party, Slot("package-signing", curve).name).is_file() else P256)


def _certified(party: Party, opened: Opened) -> list[_Certified]:
    """Judge the meters' certificates as whoever uses them would; PackageRefusedError with every reason against one."""
    found: list[_Certified] = []
    reasons: list[str] = []
    entries = [item.entry for item in opened.meters if item.entry.certificates]
    trust = trust_of(party) if entries else None
    for entry in entries:
        title = entry.system_title.hex().upper()
        for der in entry.certificates:
            try:
                certificate = parse_certificate(der, f"a certificate of meter {title}")
                profile = profile_of(certificate)
                if trust is not None:
                    check_meter_certificate(trust, certificate, (), (title, profile, entry.suite))
                found.append((certificate, title, profile))
            except (InputError, RefusedError) as error:
                told = (error.reasons if isinstance(error, RefusedError) else ()) or (error.message,)
                reasons += [f"a certificate of meter {title}: {reason}" for reason in told]
    if reasons:
        package = opened.header.id
        raise PackageRefusedError(f"package {package} is refused", tuple(reasons), "", package)
    return found


def _take(party: Party, opened: Opened, certified: Sequence[_Certified]) -> PackageRecord:
    header = opened.header
    count = len({item.entry.system_title for item in opened.meters})
    record = PackageRecord(
        id=header.id,
        direction=Direction.RECEIVED,
        purpose=header.purpose.value,
        sequence=header.sequence,
        peer=opened.sender,
        created=header.created,
        expires=header.expires,
        sha256=opened.sha256,
        state=TAKEN,
        meters=count,
    )
    detail = {"purpose": header.purpose.value, "id": header.id, "meters": count}
    with party.store.begin("package-take", opened.sender, detail) as tx:
        packages.add(tx, record)
        store_opened(tx, opened)
        for item in opened.meters:
            follow(tx, item, header.purpose)
            if header.purpose is Purpose.TRANSFER and (key_set := item.key_set) is not None:
                begin_ownership(party, tx, key_set, opened.sender)
        learn(tx, opened.sender, [item.entry for item in opened.meters])
        for certificate, title, profile in certified:
            take_meter_certificate(tx, certificate, title, profile)
    return record


def _receipted(party: Party, record: PackageRecord, data: bytes) -> Taken:
    """Give the kept receipt, or sign it now that the package is durable."""
    receipt = record.receipt
    if receipt is None:
        sender, now = _answering(party, data), utc_now()
        made = receipt_for(record.id, data, (), now)
        receipt = sign_receipt(made, sender.signer, sender.certificate, sender.chain, now)
        with party.store.begin("package-receipted", record.peer, {"id": record.id}) as tx:
            packages.set_receipt(tx, record.id, receipt, RECEIPTED)
    path = party.home / "receipts" / f"{record.id}.p7m"
    if not path.is_file():
        replace_file(path, receipt)
    return Taken(record.id, record.purpose, record.peer, record.meters, receipt, path, replayed=True)


def receipt_of(party: Party, package_id: str) -> Taken:
    """Give the receipt of a package that was taken; RefusedError where none was."""
    with party.store.read() as tx:
        record = packages.get(tx, package_id)
    if record is None or record.receipt is None or record.direction is not Direction.RECEIVED:
        raise RefusedError(f"no package {package_id} was taken here", hint="see: hsmkm package list")
    return _receipted(party, record, b"")
