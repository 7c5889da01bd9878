"""The key packages that move a party to another token: keys by their identity, and the digest of the store they are of.

Where each key belongs, its states, counters and holders are in the store, which travels beside them in one signed
archive (`hsmkm.packages.archive`). A package is as all others are, with `keys` in place of `meters`:

    {..., "purpose": "migration", "transport": {...}, "store": hex of the SHA-256 of the database,
     "keys": [{"identity": hex, "role", "suite", "wrapped": hex}]}

A key that is copied into several places has one identity, and is given once.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field

from hsmkm.errors import Fault, InputError
from hsmkm.packages.content import (
    HEADER,
    IDENTITY_OCTETS,
    KEY_WRAP,
    MAX_CONTENT,
    ROLES,
    PackageHeader,
    Purpose,
    read_header,
    read_transport,
    wrapped_octets,
)
from hsmkm.packages.fields import Fields
from hsmkm.packages.strict_json import canonical, parse
from hsmkm.token.types import MeterRole

MAX_KEYS = 50_000
SHA256_OCTETS = 32


@dataclass(frozen=True, slots=True)
class MovingKey:
    """A key on its way to another token: its identity, and its value wrapped under the package key."""

    identity: bytes
    role: MeterRole
    suite: int
    wrapped: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class MovingKeys:
    """The content of one package of keys; `store` is the SHA-256 of the database that says where they belong."""

    header: PackageHeader
    recipient_info: bytes
    store: bytes
    keys: tuple[MovingKey, ...]

    def encode(self) -> bytes:
        """Return the content octets; raise InputError for what `parse_moving` would refuse."""
        document = self.header.document()
        info = base64.b64encode(self.recipient_info).decode("ascii")
        document["transport"] = {"key_wrap": KEY_WRAP, "recipient_info": info}
        document["store"] = self.store.hex()
        document["keys"] = [
            {
                "identity": key.identity.hex(),
                "role": key.role.value,
                "suite": key.suite,
                "wrapped": key.wrapped.hex(),
            }
            for key in self.keys
        ]
        data = canonical(document)
        parse_moving(data)
        return data


def parse_moving(data: bytes) -> MovingKeys:
    """Read the content of a package of keys; raise InputError with every fault of its form."""
    faults: list[str] = []
    fields = Fields(parse(data, MAX_CONTENT, "the package content"), "", faults)
    fields.exactly((*HEADER, "transport", "store", "keys"))
    header, info = read_header(fields), read_transport(fields.inner("transport"))
    if header.purpose is not Purpose.MIGRATION:
        fields.wrong("purpose", f"is not {Purpose.MIGRATION}")
    content = MovingKeys(header, info, fields.octets("store", SHA256_OCTETS), tuple(_keys(fields)))
    if len({(key.identity, key.role) for key in content.keys}) != len(content.keys):
        fields.wrong("keys", "name one key twice")
    if faults:
        raise InputError(
            "the package content has faults of form", [Fault("package", 0, 0, text) for text in faults[:100]]
        )
    return content


def _keys(fields: Fields) -> Iterator[MovingKey]:
    values = fields.value("keys")
    if not isinstance(values, list) or not 0 < len(values) <= MAX_KEYS:
        fields.wrong("keys", f"is not a list of 1 to {MAX_KEYS}")
        return
    roles = {role.value: role for role in ROLES}
    for number, value in enumerate(values):
        key = Fields(value, f"keys[{number}]", fields.faults)
        key.exactly(("identity", "role", "suite", "wrapped"))
        role, suite = roles[key.one_of("role", list(roles))], key.integer("suite", 0, 2)
        wrapped = key.octets("wrapped", *wrapped_octets(role, suite))
        yield MovingKey(key.octets("identity", IDENTITY_OCTETS), role, suite, wrapped)
