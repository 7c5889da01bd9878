"""What a key package says: the JSON content, read strictly and written canonically.

    {"format": "hsmkm-key-package/1", "id": UUID, "sequence": n, "created": RFC 3339, "expires": RFC 3339,
     "purpose": ..., "sender": {"name", "role", "system_title"}, "recipient": {"name", "role", "system_title"},
     "transport": {"key_wrap": "aes256-wrap", "recipient_info": base64 of a DER KeyAgreeRecipientInfo},
     "meters": [{"system_title", "serial", "model", "suite", "security_setup", "client", "address", "group",
                 "generation", "revision", "state",
                 "keys": {role: {"identity": hex, "wrapped": hex, "under": "package" | "master"}},
                 "certificates": [base64 DER]}]}

`transport` is absent where no meter carries keys; `keys` and `certificates` are absent where there are none. A party
without a system title, and a meter without an address or a group, has an empty text there. System titles are written in
capitals, all other hex in small letters, times in UTC and whole seconds.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from hsmkm.errors import Fault, InputError
from hsmkm.packages.fields import Fields, decode_base64, time_text
from hsmkm.packages.quick import QuickReader
from hsmkm.packages.strict_json import MAX_INTEGER, Value, canonical, parse
from hsmkm.store.key_set import SHARED_BY_GROUP
from hsmkm.token.types import SECRET_OCTETS, KeyRole, MeterRole, SecretRole, key_octets

FORMAT = "hsmkm-key-package/1"
KEY_WRAP = "aes256-wrap"
MAX_METERS = 10_000
MAX_CONTENT = 64 << 20
MAX_LIFETIME = timedelta(days=366)
MAX_RECIPIENT_INFO = 2048
MAX_CERTIFICATE = 4096
MAX_CERTIFICATES = 8
MAX_FAULTS = 1000
"""Beyond so many faults the rest is counted, not listed."""

IDENTITY_OCTETS = 16
WRAP_OVERHEAD = 8
"""AES key wrap adds 8 octets (RFC 3394; RFC 5649 to a secret)."""

STATES = ("pre-active", "active", "suspended", "deactivated", "compromised")


class Purpose(StrEnum):
    """Why a package is sent, which says who may send it to whom."""

    INJECTION = "injection"
    DELIVERY = "delivery"
    DISTRIBUTION = "distribution"
    ACTIVATION = "activation"
    TRANSFER = "transfer"
    MIGRATION = "migration"


THIRD_PARTY = "third-party"
FOR_THIRD_PARTIES: frozenset[MeterRole] = frozenset({KeyRole.GAK})
"""What a third party is given: additional authenticated data of its APDUs, which opens none of anybody's."""


class Under(StrEnum):
    """The key that a meter key is wrapped under."""

    PACKAGE = "package"
    MASTER = "master"


@dataclass(frozen=True, slots=True)
class Peer:
    """A party as a package names it; the system title is empty where it has none."""

    name: str
    role: str
    system_title: bytes = b""


@dataclass(frozen=True, slots=True)
class PackageHeader:
    """Everything a package says besides how keys are carried and for which meters."""

    id: str
    sequence: int
    created: datetime
    expires: datetime
    purpose: Purpose
    sender: Peer
    recipient: Peer

    def document(self) -> dict[str, object]:
        """Return the header as JSON values."""
        return {
            "format": FORMAT,
            "id": self.id,
            "sequence": self.sequence,
            "created": time_text(self.created),
            "expires": time_text(self.expires),
            "purpose": self.purpose.value,
            "sender": _peer_document(self.sender),
            "recipient": _peer_document(self.recipient),
        }

    def ukm(self) -> bytes:
        """Return the SHA-256 of the canonical header, 32 octets, which the package key is bound to.

        So the same recipient info does not open under another header, that is in a package of another sender.
        """
        return hashlib.sha256(canonical(self.document())).digest()


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A meter key on its way: its identity, and its value wrapped under the package key or the meter's master key."""

    role: MeterRole
    identity: bytes
    wrapped: bytes = field(repr=False)
    under: Under


@dataclass(frozen=True, slots=True)
class MeterEntry:
    """One generation of keys of one security setup and client of one meter, or the same without the keys."""

    system_title: bytes
    serial: str
    model: str
    suite: int
    security_setup: int
    client: int
    generation: int
    state: str
    address: str = ""
    group: str = ""
    revision: int = 0
    keys: tuple[WrappedKey, ...] = ()
    certificates: tuple[bytes, ...] = ()

    @property
    def name(self) -> tuple[bytes, int, int, int]:
        """What no two entries of a package share."""
        return self.system_title, self.security_setup, self.client, self.generation

    @property
    def place(self) -> str:
        """How reasons name this entry."""
        where = "" if not self.security_setup else f" security setup {self.security_setup}"
        return f"meter {self.system_title.hex().upper()}{where} generation {self.generation}"

    def document(self) -> dict[str, object]:
        """Return the entry as JSON values."""
        document: dict[str, object] = {
            "system_title": self.system_title.hex().upper(),
            "serial": self.serial,
            "model": self.model,
            "suite": self.suite,
            "security_setup": self.security_setup,
            "client": self.client,
            "address": self.address,
            "group": self.group,
            "generation": self.generation,
            "revision": self.revision,
            "state": self.state,
        }
        if self.keys:
            document["keys"] = {key.role.value: _key_document(key) for key in self.keys}
        if self.certificates:
            document["certificates"] = [base64.b64encode(der).decode("ascii") for der in self.certificates]
        return document


@dataclass(frozen=True, slots=True)
class PackageContent:
    """A whole package; `recipient_info` is empty where no meter carries keys."""

    header: PackageHeader
    recipient_info: bytes
    meters: tuple[MeterEntry, ...]

    @property
    def has_keys(self) -> bool:
        """Whether any meter carries keys."""
        return any(entry.keys for entry in self.meters)

    def encode(self) -> bytes:
        """Return the content octets; raise InputError for what `parse_content` would refuse."""
        data = canonical(self.document())
        parse_content(data)
        return data

    def document(self) -> dict[str, object]:
        """Return the content as JSON values."""
        document = self.header.document()
        if self.recipient_info:
            info = base64.b64encode(self.recipient_info).decode("ascii")
            document["transport"] = {"key_wrap": KEY_WRAP, "recipient_info": info}
        document["meters"] = [entry.document() for entry in self.meters]
        return document


def parse_content(data: bytes) -> PackageContent:
    """Read the content of a package; raise InputError with every fault of its form."""
    return _parse_quickly(data) or _parse_strictly(data)


def _parse_quickly(data: bytes) -> PackageContent | None:
    """Read a content that is canonical, whose entries are alike and in which nothing is wrong; nothing of another."""
    reader = QuickReader(_read_alone)
    if len(data) > MAX_CONTENT or not reader.read(data) or len(reader.entries) > MAX_METERS:
        return None
    faults: list[str] = []
    try:
        fields = Fields(parse(reader.around.encode(), MAX_CONTENT, "the package content"), "", faults)
    except InputError:
        return None
    fields.exactly((*HEADER, "meters"), ("transport",))
    header, info = _read_frame(fields)
    if faults or fields.value("meters") != [] or any(_whole_faults(PackageContent(header, info, reader.known))):
        return None
    return PackageContent(header, info, tuple(reader.entries))


def _read_alone(value: Value) -> MeterEntry | None:
    """Read an entry; nothing for one with a fault."""
    faults: list[str] = []
    entry = _meter(Fields(value, "", faults))
    return None if faults else entry


def _parse_strictly(data: bytes) -> PackageContent:
    document = parse(data, MAX_CONTENT, "the package content")
    faults: list[str] = []
    content = _content(Fields(document, "", faults))
    faults += _whole_faults(content)
    if faults:
        shown = [Fault("package", 0, 0, text) for text in faults[:MAX_FAULTS]]
        more = "" if len(faults) <= MAX_FAULTS else f" and {len(faults) - MAX_FAULTS} more"
        raise InputError(f"the package content has {len(shown)}{more} faults of form", shown)
    return content


def _content(fields: Fields) -> PackageContent:
    fields.exactly((*HEADER, "meters"), ("transport",))
    return PackageContent(*_read_frame(fields), tuple(_meters(fields)))


def _read_frame(fields: Fields) -> tuple[PackageHeader, bytes]:
    return read_header(fields), read_transport(fields.inner("transport")) if fields.has("transport") else b""


HEADER = ("format", "id", "sequence", "created", "expires", "purpose", "sender", "recipient")


def read_header(fields: Fields) -> PackageHeader:
    """Read what every package says of itself."""
    fields.one_of("format", (FORMAT,))
    return PackageHeader(
        id=fields.uuid("id"),
        sequence=fields.integer("sequence", 1, MAX_INTEGER),
        created=fields.time("created"),
        expires=fields.time("expires"),
        purpose=Purpose(fields.one_of("purpose", [one.value for one in Purpose])),
        sender=_peer(fields.inner("sender")),
        recipient=_peer(fields.inner("recipient")),
    )


def _peer(fields: Fields) -> Peer:
    fields.exactly(("name", "role", "system_title"))
    return Peer(fields.text("name"), fields.text("role"), fields.title("system_title", empty=True))


def _peer_document(peer: Peer) -> dict[str, str]:
    return {"name": peer.name, "role": peer.role, "system_title": peer.system_title.hex().upper()}


def read_transport(fields: Fields) -> bytes:
    """Read how the keys travel: the recipient info in DER."""
    fields.exactly(("key_wrap", "recipient_info"))
    fields.one_of("key_wrap", (KEY_WRAP,))
    return fields.base64("recipient_info", MAX_RECIPIENT_INFO)


def _meters(fields: Fields) -> Iterator[MeterEntry]:
    entries = fields.value("meters")
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_METERS:
        fields.wrong("meters", f"is not a list of 1 to {MAX_METERS}")
        return
    for number, entry in enumerate(entries):
        yield _meter(Fields(entry, f"meters[{number}]", fields.faults))


_METER = (
    "system_title",
    "serial",
    "model",
    "suite",
    "security_setup",
    "client",
    "address",
    "group",
    "generation",
    "revision",
    "state",
)


def _meter(fields: Fields) -> MeterEntry:
    fields.exactly(_METER, ("keys", "certificates"))
    suite = fields.integer("suite", 0, 2)
    return MeterEntry(
        system_title=fields.title("system_title"),
        serial=fields.text("serial"),
        model=fields.text("model"),
        suite=suite,
        security_setup=fields.integer("security_setup", 0, 255),
        client=fields.integer("client", 0, 0xFFFF),
        address=fields.text("address", 255, empty=True),
        group=fields.text("group", empty=True),
        generation=fields.integer("generation", 0, 2**31 - 1),
        revision=fields.integer("revision", 0, 2**31 - 1),
        state=fields.one_of("state", STATES),
        keys=tuple(_keys(fields.inner("keys"), suite)) if fields.has("keys") else (),
        certificates=tuple(_certificates(fields)) if fields.has("certificates") else (),
    )


ROLES: tuple[MeterRole, ...] = (*KeyRole, *SecretRole)


def _keys(fields: Fields, suite: int) -> Iterator[WrappedKey]:
    fields.exactly((), [role.value for role in ROLES])
    present = [role for role in ROLES if fields.has(role.value)]
    if not present:
        fields.wrong("", "is empty")
    for role in present:
        key = fields.inner(role.value)
        key.exactly(("identity", "wrapped", "under"))
        yield WrappedKey(
            role,
            key.octets("identity", IDENTITY_OCTETS),
            key.octets("wrapped", *wrapped_octets(role, suite)),
            Under(key.one_of("under", [one.value for one in Under])),
        )


def wrapped_octets(role: MeterRole, suite: int) -> tuple[int, ...]:
    """Give every length that a wrapped key of this role can have; a secret's is its own, whatever the suite."""
    octets = SECRET_OCTETS if isinstance(role, SecretRole) else (key_octets(suite),)
    return tuple(count + WRAP_OVERHEAD for count in octets)


def _key_document(key: WrappedKey) -> dict[str, str]:
    return {"identity": key.identity.hex(), "wrapped": key.wrapped.hex(), "under": key.under.value}


def _certificates(fields: Fields) -> Iterator[bytes]:
    values = fields.value("certificates")
    if not isinstance(values, list) or not 0 < len(values) <= MAX_CERTIFICATES:
        fields.wrong("certificates", f"is not a list of 1 to {MAX_CERTIFICATES}")
        return
    for number, value in enumerate(values):
        der = decode_base64(value, MAX_CERTIFICATE)
        if der is None:
            fields.wrong(f"certificates[{number}]", "is not base64 of a certificate")
        else:
            yield der


def _whole_faults(content: PackageContent) -> Iterator[str]:
    """Say what is wrong between members that are right by themselves."""
    header = content.header
    if not header.created < header.expires <= header.created + MAX_LIFETIME:
        yield f"expires is not after created by at most {MAX_LIFETIME.days} days"
    if content.has_keys and not content.recipient_info:
        yield "transport is missing, and there are keys"
    if content.recipient_info and not content.has_keys:
        yield "transport is there, and no keys are"
    yield from _purpose_faults(content)
    yield from _repetitions(content.meters)


def _purpose_faults(content: PackageContent) -> Iterator[str]:
    purpose = content.header.purpose
    if purpose is Purpose.MIGRATION:
        yield "a migration carries keys by their identity, in an archive with the store they belong to"
    for entry in content.meters:
        roles = {key.role for key in entry.keys}
        if purpose is Purpose.ACTIVATION and roles:
            yield f"{entry.place}: an activation carries no keys"
        if purpose is Purpose.DISTRIBUTION and KeyRole.MASTER in roles:
            yield f"{entry.place}: a distribution carries no master key"
        if content.header.recipient.role == THIRD_PARTY and not roles <= FOR_THIRD_PARTIES:
            yield f"{entry.place}: a third party is given the GAK alone"
        if purpose not in (Purpose.ACTIVATION, Purpose.DISTRIBUTION) and not roles:
            yield f"{entry.place}: there are no keys"
        if purpose is Purpose.INJECTION and roles and KeyRole.MASTER not in roles:
            yield f"{entry.place}: an injection carries the master key"
        for key in entry.keys:
            if key.under is not under(purpose, key.role):
                yield f"{entry.place}: {key.role} does not lie under the {under(purpose, key.role)} key"


def under(purpose: Purpose, role: MeterRole) -> Under:
    """Return the key that a key of this role lies under: in an injection the master key carries the others."""
    return Under.MASTER if purpose is Purpose.INJECTION and role is not KeyRole.MASTER else Under.PACKAGE


def _repetitions(meters: tuple[MeterEntry, ...]) -> Iterator[str]:
    """Find a generation given twice, and a key given twice, except where the same group shares its keys."""
    names: set[tuple[bytes, int, int, int]] = set()
    seen: dict[bytes, tuple[MeterEntry, WrappedKey]] = {}
    for entry in meters:
        if entry.system_title and entry.name in names:
            yield f"{entry.place} occurs twice for one security setup and client"
        names.add(entry.name)
        for key in entry.keys:
            for octets in filter(None, (key.wrapped, key.identity)):
                first = seen.setdefault(octets, (entry, key))
                if first[1] is not key and not _is_shared(first, (entry, key)):
                    yield f"{entry.place}: {key.role} is the same key as {first[1].role} of {first[0].place}"
                    break


def _is_shared(one: tuple[MeterEntry, WrappedKey], other: tuple[MeterEntry, WrappedKey]) -> bool:
    """Whether two equal keys are one: a key of a group, or a key copied into a meter's next generation."""
    (entry, key), (entry2, key2) = one, other
    if (key.role, key.identity, key.wrapped) != (key2.role, key2.identity, key2.wrapped):
        return False
    in_group = key.role in SHARED_BY_GROUP and bool(entry.group) and entry.group == entry2.group
    return in_group or entry.name[:3] == entry2.name[:3]
