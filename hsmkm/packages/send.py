"""Making a package: the recipient is checked first, then every key is wrapped in the token, then the whole is signed.

In an injection the master key lies under the package key and the other keys under the master key, so that the line
hands a meter exactly what its key transfer takes. In every other package each key lies under the package key.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.errors import InputError, RefusedError
from hsmkm.packages.container import sign_content
from hsmkm.packages.content import (
    FOR_THIRD_PARTIES,
    STATES,
    THIRD_PARTY,
    MeterEntry,
    PackageContent,
    PackageHeader,
    Peer,
    Purpose,
    Under,
    WrappedKey,
    under,
)
from hsmkm.packages.receipt import Receipt, open_receipt
from hsmkm.packages.roles import role_reasons
from hsmkm.packages.transport import wrap_package_key
from hsmkm.pki.certificates import fingerprint, holder, public_key
from hsmkm.pki.slots import SUITE_2
from hsmkm.pki.trust import TrustStore
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.store.meter import Meter
from hsmkm.token.keys import KeyHandle
from hsmkm.token.types import KeyRole, MeterRole, Sealed, Use
from hsmkm.token.vault import Vault

LIFETIME = timedelta(days=30)

NOT_DISTRIBUTED: frozenset[MeterRole] = frozenset({KeyRole.MASTER})
"""What a distribution never carries."""


@dataclass(frozen=True, slots=True)
class Signatory:
    """This party as a signer of packages and receipts: its key in the token and its package-signing certificate."""

    role: str
    system_title: bytes
    signer: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]

    @property
    def peer(self) -> Peer:
        """How a package names this party: by the name in its package-signing certificate."""
        return Peer(holder(self.certificate), self.role, self.system_title)


@dataclass(frozen=True, slots=True)
class Recipient:
    """A registered party with its pinned key-agreement certificate."""

    peer: Peer
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A meter to speak of, and the key set to give; None where the recipient gets no keys."""

    entry: MeterEntry
    key_set: KeySet | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """A finished package: the octets of the `.p7m` file and what the store records of them."""

    header: PackageHeader
    meters: tuple[MeterEntry, ...]
    data: bytes = field(repr=False)

    @property
    def meter_count(self) -> int:
        """How many meters it speaks of; one has an entry for each of its key sets."""
        return len({entry.system_title for entry in self.meters})

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the file, 32 octets."""
        return hashlib.sha256(self.data).digest()


def outgoing(
    meter: Meter,
    key_set: KeySet,
    state: KeyState,
    *,
    with_keys: bool = True,
    group: str = "",
    revision: int = 0,
    address: str | None = None,
) -> Outgoing:
    """Say of a stored meter and key set what a package says of them; without keys for a relay and an activation."""
    if state.value not in STATES:
        raise RefusedError(f"key set {key_set.ref} is {state} and not given to anyone")
    entry = MeterEntry(
        system_title=meter.system_title,
        serial=meter.serial,
        model=meter.model,
        suite=key_set.suite,
        security_setup=key_set.ref.security_setup,
        client=key_set.ref.client,
        generation=key_set.ref.generation,
        state=state.value,
        address=(meter.address if address is None else address) or "",
        group=group,
        revision=revision,
    )
    return Outgoing(entry, key_set if with_keys else None)


def new_header(
    purpose: Purpose,
    sequence: int,
    sender: Peer,
    recipient: Peer,
    now: datetime,
    lifetime: timedelta = LIFETIME,
) -> PackageHeader:
    """Return the header of a new package, with an id of its own."""
    created = now.astimezone(UTC).replace(microsecond=0)
    return PackageHeader(str(uuid.uuid4()), sequence, created, created + lifetime, purpose, sender, recipient)


def check_recipient(trust: TrustStore, sender: Peer, recipient: Recipient, purpose: Purpose, now: datetime) -> None:
    """Check role, certificate, chain and revocation of a recipient; raise RefusedError with every reason."""
    reasons = list(role_reasons(purpose, sender, recipient.peer))
    owner = recipient.peer.system_title.hex().upper()
    try:
        trust.check(recipient.certificate, recipient.chain, "key-agreement", now, owner)
    except RefusedError as error:
        reasons += error.reasons
    if reasons:
        raise RefusedError(f"{recipient.peer.name} may not receive a package for {purpose}", reasons)


def build_package(
    vault: Vault,
    trust: TrustStore,
    sender: Signatory,
    recipient: Recipient,
    header: PackageHeader,
    meters: Sequence[Outgoing],
) -> Package:
    """Wrap the keys of the meters for the recipient and sign the package; nothing is stored.

    Raises RefusedError where the recipient, its certificate or the sender's is not acceptable at the header's date, and
    InputError where the package would not be well formed.
    """
    suites = {one.entry.suite for one in meters}
    if any(one.key_set for one in meters):
        fill = partial(_filled_all, vault, header, meters)
        return seal_package(vault, trust, sender, recipient, header, suites, fill)
    _check_parties(trust, sender, recipient, header, suites)
    return _signed(sender, header, b"", tuple(one.entry for one in meters))


def seal_package(
    vault: Vault,
    trust: TrustStore,
    sender: Signatory,
    recipient: Recipient,
    header: PackageHeader,
    suites: Iterable[int],
    fill: Callable[[KeyHandle], tuple[MeterEntry, ...]],
) -> Package:
    """Make a package key for the recipient, let `fill` wrap meters' keys under it, and sign; nothing is stored.

    `suites` are those of the meters. Raises as `build_package`, before `fill` is called where the parties are at fault.
    """
    _check_parties(trust, sender, recipient, header, suites)
    with vault.generate_package_key() as package_key:
        info = wrap_package_key(vault, package_key, recipient.certificate, header.ukm())
        entries = fill(package_key)
    return _signed(sender, header, info, entries)


def open_bulk(
    vault: Vault,
    trust: TrustStore,
    sender: Signatory,
    recipient: Recipient,
    header: PackageHeader,
    suites: Iterable[int],
) -> tuple[Sealed, bytes]:
    """Make a package key for the recipient, lent to the workers that wrap under it, and the recipient info in DER.

    Raises as `build_package`; `close_bulk` signs what was made.
    """
    _check_parties(trust, sender, recipient, header, suites)
    with vault.generate_package_key() as package_key:
        return vault.lend(package_key), wrap_package_key(vault, package_key, recipient.certificate, header.ukm())


def close_bulk(sender: Signatory, header: PackageHeader, content: bytes) -> bytes:
    """Sign the content of a package whose entries were written in bulk; the octets of its file."""
    return sign_content(content, sender.signer, sender.certificate, sender.chain, header.created)


def _check_parties(
    trust: TrustStore, sender: Signatory, recipient: Recipient, header: PackageHeader, suites: Iterable[int]
) -> None:
    check_recipient(trust, header.sender, recipient, header.purpose, header.created)
    trust.check(sender.certificate, sender.chain, "package-signing", header.created)
    if header.sender != sender.peer or header.recipient != recipient.peer:
        raise InputError("the header names other parties than the package is made for")
    reasons = suite_reasons(suites, public_key(sender.certificate), public_key(recipient.certificate))
    if reasons:
        raise RefusedError("the keys of the parties are too weak for these meters", reasons)


def _signed(sender: Signatory, header: PackageHeader, info: bytes, entries: tuple[MeterEntry, ...]) -> Package:
    content = PackageContent(header, info, entries).encode()
    data = sign_content(content, sender.signer, sender.certificate, sender.chain, header.created)
    return Package(header, entries, data)


def _filled_all(
    vault: Vault, header: PackageHeader, meters: Sequence[Outgoing], package_key: KeyHandle
) -> tuple[MeterEntry, ...]:
    return tuple(_filled(vault, package_key, header, one) for one in meters)


def check_receipt(
    data: bytes, package: str, sha256: bytes, trust: TrustStore, pinned: Iterable[bytes], now: datetime
) -> Receipt:
    """Check a receipt against the package it should be for and the recipient's pinned package-signing certificates.

    `sha256` is the digest of the package file and `pinned` those of the certificates. Raises InputError or
    IntegrityError where it cannot be read or its signature fails, and RefusedError with every reason where it is not
    acceptable.
    """
    receipt, signed = open_receipt(data)
    reasons: list[str] = []
    try:
        trust.check(signed.signer, signed.chain, "package-signing", now)
    except RefusedError as error:
        reasons += error.reasons
    reasons += trust.stray(signed.signer, signed.chain)
    signer = fingerprint(signed.signer)
    if not any(hmac.compare_digest(signer, one) for one in pinned):
        reasons.append("the receipt is not signed with the recipient's registered certificate")
    if receipt.package != package:
        reasons.append(f"the receipt is for package {receipt.package}")
    if not hmac.compare_digest(receipt.sha256, sha256):
        reasons.append("the receipt is for other octets than those of the package")
    if reasons:
        raise RefusedError(f"the receipt for package {package} is not accepted", reasons)
    return receipt


def suite_reasons(suites: Iterable[int], *keys: ec.EllipticCurvePublicKey) -> list[str]:
    """Say whether a key of suite 2 would travel under P-256, which protects less than it does."""
    weak = SUITE_2 in suites and any(key.curve.name != ec.SECP384R1.name for key in keys)
    return ["meters of suite 2 need signing and key-agreement keys on P-384"] if weak else []


def _filled(vault: Vault, package_key: KeyHandle, header: PackageHeader, one: Outgoing) -> MeterEntry:
    """Return the entry with its keys, wrapped as the purpose says."""
    key_set, purpose = one.key_set, header.purpose
    if key_set is None:
        return one.entry
    roles = [key.role for key in key_set.keys if purpose is not Purpose.DISTRIBUTION or key.role not in NOT_DISTRIBUTED]
    if header.recipient.role == THIRD_PARTY:
        roles = [role for role in roles if role in FOR_THIRD_PARTIES]
    with ExitStack() as handles:
        carriers = {Under.PACKAGE: package_key}
        if purpose is Purpose.INJECTION:
            carriers[Under.MASTER] = handles.enter_context(_open(vault, key_set, KeyRole.MASTER, Use.IN_USE))
        keys = tuple(_wrapped(vault, carriers, key_set, role, under(purpose, role)) for role in roles)
    return replace(one.entry, keys=keys)


def _wrapped(
    vault: Vault, carriers: dict[Under, KeyHandle], key_set: KeySet, role: MeterRole, carrier: Under
) -> WrappedKey:
    with _open(vault, key_set, role, Use.TRANSPORT) as key:
        wrapped = vault.wrap(carriers[carrier], key)
    return WrappedKey(role, key_set.key(role).identity, wrapped, carrier)


def _open(vault: Vault, key_set: KeySet, role: MeterRole, use: Use) -> KeyHandle:
    sealed = Sealed(key_set.storage_key, key_set.key(role).wrapped)
    return vault.open(role, sealed, key_set.suite, use)
