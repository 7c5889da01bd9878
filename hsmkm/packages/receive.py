"""Opening a package: everything about it is checked before a key is unwrapped, and every key before any is stored.

    signature -> form -> signer: chain, revocation, registered, role, FLAG ids -> recipient, dates, sequence,
    generations -> package key -> each meter key unwrapped in the token and sealed under our storage key

A package is taken whole or not at all. What comes out is ready for one transaction of the store, which the caller
makes; until then nothing has changed. Everything wrong is reported at once, as far as it can be seen: the keys
themselves are tried only when all before them is right.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.packages.arrivals import Arrivals, NewSets, Received
from hsmkm.packages.container import Signed, open_container
from hsmkm.packages.content import MAX_METERS, PackageContent, PackageHeader, Peer, Purpose, parse_content
from hsmkm.packages.roles import flag_reasons, role_reasons
from hsmkm.packages.send import suite_reasons
from hsmkm.packages.taking import Carried, Labour, take_key_sets
from hsmkm.packages.transport import issuer_and_serial, parse_recipient_info, recipient_reasons
from hsmkm.pki.certificates import fingerprint, holder, public_key
from hsmkm.pki.trust import TrustStore
from hsmkm.store.holders import Giving
from hsmkm.store.key_set import MAX_GENERATION_STEP
from hsmkm.store.meter import Meter
from hsmkm.token.vault import Vault

MAX_UNTRUSTED = 1 << 20
"""Octets of content that are still parsed, to name every reason, when the signer is refused already."""

FIRST_KEYS = (Purpose.DELIVERY, Purpose.TRANSFER)
"""Purposes that bring a meter's keys to one who has not spoken to it yet."""

CLOCK_SKEW = timedelta(minutes=5)
"""How far the sender's clock may be ahead of ours."""


@dataclass(frozen=True, slots=True)
class Sender:
    """A registered party that may send us packages; its package-signing certificate is pinned."""

    name: str
    role: str
    system_title: bytes = b""
    flags: tuple[str, ...] = ()


class Registry(Protocol):
    """What the opening of a package asks of the store, within the transaction that will take the package."""

    def sender(self, pinned: bytes) -> Sender | None:
        """Return the party whose package-signing certificate has this SHA-256, or None."""

    def last_sequence(self, sender: str, purpose: str) -> int:
        """Return the sequence of the last package taken from this party for this purpose; 0 where there was none."""

    def look_up(self, titles: Sequence[bytes]) -> None:
        """Read what is known of these meters at once, before it is asked meter by meter."""

    def newest_generation(self, system_title: bytes, security_setup: int, client: int) -> int | None:
        """Return the newest generation that we have keys of, or None."""

    def meter(self, system_title: bytes) -> Meter | None:
        """Return the meter as we know it, or None."""


@dataclass(frozen=True, slots=True)
class AgreementKey:
    """A key-agreement key of this party: its label in the token, and the certificate of it."""

    label: str
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Receiver:
    """This party as a recipient: its key-agreement keys, at least one, and what it trusts."""

    peer: Peer
    keys: tuple[AgreementKey, ...]
    trust: TrustStore

    def key_for(self, recipient: bytes) -> AgreementKey:
        """Return the key whose certificate a recipient info names; where it names none of ours, the first."""
        named = (key for key in self.keys if issuer_and_serial(key.certificate) == recipient)
        return next(named, self.keys[0])


@dataclass(frozen=True, slots=True)
class Opened:
    """A package that was accepted, ready for the one transaction that takes it.

    `new_sets` and `giving` say what `meters` do as it is stored: the key sets, and who gave them.
    """

    header: PackageHeader
    sender: str
    sha256: bytes
    meters: tuple[Received, ...]
    new_sets: tuple[NewSets, ...]
    giving: Giving


@dataclass(frozen=True, slots=True)
class Inspected:
    """A package whose signature holds and whose form is right; nothing else was checked."""

    content: PackageContent
    signed: Signed
    sha256: bytes = field(repr=False)


class PackageRefusedError(RefusedError):
    """A package was refused; `package` is its id, empty where it has none that can be read."""

    def __init__(self, message: str, reasons: tuple[str, ...], hint: str = "", package: str = "") -> None:
        super().__init__(message, reasons, hint)
        self.package = package
        self.args = (message, self.reasons, hint, package)


def inspect_package(data: bytes) -> Inspected:
    """Read a package without a token and without trust; raise InputError or IntegrityError."""
    signed = open_container(data)
    return Inspected(parse_content(signed.content), signed, hashlib.sha256(data).digest())


def open_package(
    vault: Vault, registry: Registry, receiver: Receiver, data: bytes, now: datetime, labour: Labour | None = None
) -> Opened:
    """Check a package and bring its keys under our storage key; `labour` does that for many.

    Raises InputError and IntegrityError where the container cannot be read or its signature does not hold, and
    PackageRefusedError with every reason for everything else. A package that was taken before is refused for its
    sequence; whoever wants to answer a replay with the first receipt looks it up before.
    """
    signed = open_container(data)
    sender = registry.sender(fingerprint(signed.signer))
    reasons = list(_signer_reasons(signed, sender, receiver, now))
    if reasons and len(signed.content) > MAX_UNTRUSTED:
        raise _refused(None, [*reasons, "the content was not looked at: it is large, and its signer is not trusted"])
    content, form = _parse(signed)
    reasons += form
    if content is not None:
        reasons += _header_reasons(content, signed, receiver, now)
    if content is not None and sender is not None:
        registry.look_up(sorted({entry.system_title for entry in content.meters}))
        reasons += _sender_reasons(content, signed, sender, receiver, registry)
        reasons += _meter_reasons(content, registry)
    if content is None or sender is None or reasons:
        raise _refused(content, reasons)
    giving = Giving(sender.name, content.header.id, now)
    arrivals = Arrivals(registry, content.meters, giving)
    if content.has_keys:
        _open_meters(vault, receiver, content, arrivals, labour)
    else:
        deque(arrivals.lots(MAX_METERS), maxlen=0)
    sha256 = hashlib.sha256(data).digest()
    return Opened(content.header, sender.name, sha256, arrivals.received(), tuple(arrivals.new_sets), giving)


def _refused(content: PackageContent | None, reasons: list[str]) -> PackageRefusedError:
    package = content.header.id if content else ""
    hint = "nothing of it was taken; the sender makes a new package after correcting it"
    return PackageRefusedError(
        f"package {package or 'without a readable id'} is refused", tuple(reasons), hint, package
    )


def _parse(signed: Signed) -> tuple[PackageContent | None, list[str]]:
    try:
        return parse_content(signed.content), []
    except InputError as error:
        return None, [fault.text for fault in error.faults] or [error.message]


def _signer_reasons(signed: Signed, sender: Sender | None, receiver: Receiver, now: datetime) -> Iterator[str]:
    if sender is None:
        yield "the signer is not the package-signing certificate of a registered party"
    try:
        receiver.trust.check(signed.signer, signed.chain, "package-signing", now)
    except RefusedError as error:
        yield from error.reasons
    yield from receiver.trust.stray(signed.signer, signed.chain)


def _sender_reasons(
    content: PackageContent, signed: Signed, sender: Sender, receiver: Receiver, registry: Registry
) -> Iterator[str]:
    header, named = content.header, content.header.sender
    if named.name != holder(signed.signer):
        yield f"the package names the sender {named.name!r}, and its signer is {holder(signed.signer)!r}"
    if (named.role, named.system_title) != (sender.role, sender.system_title):
        yield "the package names the sender with another role or system title than it is registered with"
    yield from role_reasons(header.purpose, Peer(sender.name, sender.role, sender.system_title), receiver.peer)
    yield from flag_reasons(sender.role, sender.flags, (entry.system_title for entry in content.meters))
    last = registry.last_sequence(sender.name, header.purpose.value)
    if header.sequence <= last:
        yield f"the sequence {header.sequence} does not rise: {last} was taken before"


def _header_reasons(content: PackageContent, signed: Signed, receiver: Receiver, now: datetime) -> Iterator[str]:
    header, ours = content.header, receiver.peer
    if header.purpose is Purpose.INJECTION:
        yield "an injection is opened by line equipment, which keeps no keys"
    if (header.recipient.system_title, header.recipient.role) != (ours.system_title, ours.role):
        yield "the package is for another recipient"
    if now > header.expires:
        yield "the package has expired"
    if header.created > now + CLOCK_SKEW:
        yield "the package was created in the future"
    suites, signing = {entry.suite for entry in content.meters}, public_key(signed.signer)
    if not content.recipient_info:
        yield from suite_reasons(suites, signing)
        return
    try:
        info = parse_recipient_info(content.recipient_info)
    except InputError as error:
        yield error.message
        yield from suite_reasons(suites, signing)
    else:
        certificate = receiver.key_for(info.recipient).certificate
        yield from suite_reasons(suites, signing, public_key(certificate))
        yield from recipient_reasons(info, certificate, header.ukm())


def _meter_reasons(content: PackageContent, registry: Registry) -> Iterator[str]:
    for entry in content.meters:
        newest = registry.newest_generation(entry.system_title, entry.security_setup, entry.client)
        if entry.keys and newest is not None and entry.generation <= newest:
            yield f"{entry.place}: the generation does not rise, {newest} is known"
        if content.header.purpose is Purpose.ACTIVATION and (newest is None or entry.generation > newest):
            yield f"{entry.place}: there are no keys to activate"
        if newest is not None and entry.generation > newest + MAX_GENERATION_STEP:
            yield f"{entry.place}: the generation rises too far, {newest} is known"
        known = registry.meter(entry.system_title)
        if known is not None and known.registered and content.header.purpose in FIRST_KEYS:
            yield f"{entry.place}: the meter is registered here, its keys are renewed and not delivered"
        if known is not None and (known.serial, known.model, known.suite) != (entry.serial, entry.model, entry.suite):
            yield f"{entry.place}: serial number, model or suite differ from what is known of this meter"


def _open_meters(
    vault: Vault, receiver: Receiver, content: PackageContent, arrivals: Arrivals, labour: Labour | None
) -> None:
    """Bring the keys of all meters under our storage keys; PackageRefusedError names each that does not unwrap."""
    ours = receiver.key_for(parse_recipient_info(content.recipient_info).recipient)
    certificate = ours.certificate.public_bytes(Encoding.DER)
    carried = Carried(ours.label, certificate, content.recipient_info, content.header.ukm())
    sets = sum(1 for entry in content.meters if entry.keys)
    try:
        package_key = carried.open(vault)
    except IntegrityError as error:
        raise _refused(content, ["the package key does not unwrap: it was altered or made for another key"]) from error
    with package_key:
        alone = labour is None or sets <= labour.batch
        for lot in arrivals.lots(MAX_METERS) if alone else ():
            arrivals.take(take_key_sets(vault, package_key, lot))
    if labour is not None and not alone:
        with closing(labour.take(sets, carried, arrivals.lots(labour.batch))) as answers:
            for taken in answers:
                arrivals.take(taken)
    if reasons := arrivals.reasons():
        raise _refused(content, reasons)
