"""Security Setup, class_id 64: its attributes and methods, and the data of key_transfer (IEC 62056-6-2 clause 4.4.7).

The data of key_agreement is in `agreement`, that of the methods for certificates in `certificates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from hsmkm.dlms import axdr
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, MethodRef, SecuritySuite
from hsmkm.errors import ProtocolError

CLASS_ID = 64
WRAPPED_OCTETS = frozenset(suite.wrapped_octets for suite in SecuritySuite)


class Attribute(IntEnum):
    """Attributes of Security Setup; the last is of version 1."""

    LOGICAL_NAME = 1
    SECURITY_POLICY = 2
    SECURITY_SUITE = 3
    CLIENT_SYSTEM_TITLE = 4
    SERVER_SYSTEM_TITLE = 5
    CERTIFICATES = 6


class Method(IntEnum):
    """Methods of Security Setup; version 0 has the first two, and names key_transfer global_key_transfer."""

    SECURITY_ACTIVATE = 1
    KEY_TRANSFER = 2
    KEY_AGREEMENT = 3
    GENERATE_KEY_PAIR = 4
    GENERATE_CERTIFICATE_REQUEST = 5
    IMPORT_CERTIFICATE = 6
    EXPORT_CERTIFICATE = 7
    REMOVE_CERTIFICATE = 8


@dataclass(frozen=True, slots=True)
class KeyTransfer:
    """One key on its way into a meter, wrapped under the meter's current master key (RFC 3394): 24 or 40 octets."""

    key_id: KeyId
    wrapped: bytes = field(repr=False)


def logical_name(setup: int = 0) -> LogicalName:
    """The name of a meter's security setup: 0.0.43.0.e.255."""
    return LogicalName(bytes([0, 0, 43, 0, setup, 255]))


def attribute(which: Attribute, setup: int = 0) -> AttributeRef:
    """Name an attribute of a security setup."""
    return AttributeRef(CLASS_ID, logical_name(setup), which)


def method(which: Method, setup: int = 0) -> MethodRef:
    """Name a method of a security setup."""
    return MethodRef(CLASS_ID, logical_name(setup), which)


def key_transfer_method(setup: int = 0) -> MethodRef:
    """Name the method key_transfer of a security setup."""
    return method(Method.KEY_TRANSFER, setup)


def invocation_counter(setup: int = 0) -> AttributeRef:
    """Name the object in which the public client reads the server's view of the counter: 0.0.43.1.e.255."""
    return AttributeRef(1, LogicalName(bytes([0, 0, 43, 1, setup, 255])), 2)


def encode_key_transfer(keys: Sequence[KeyTransfer]) -> Data:
    """Build the method's data: an array of structure{enum key_id, octet-string}."""
    return axdr.array(*(axdr.structure(axdr.enum(key.key_id), axdr.octet_string(key.wrapped)) for key in keys))


def decode_key_transfer(data: Data) -> tuple[KeyTransfer, ...]:
    """Read the method's data; raises ProtocolError for an unknown or repeated key_id and for a wrong length."""
    keys = tuple(_decode_entry(entry) for entry in data.items())
    if not keys or len({key.key_id for key in keys}) != len(keys):
        raise ProtocolError("a key_transfer names each of its keys once")
    return keys


def _decode_entry(entry: Data) -> KeyTransfer:
    fields = entry.items()
    if len(fields) != 2:  # noqa: PLR2004 - key_id and wrapped key
        raise ProtocolError("an entry of a key_transfer has two elements")
    key_id, wrapped = fields[0].integer(), fields[1].octets()
    if key_id not in KeyId.__members__.values() or len(wrapped) not in WRAPPED_OCTETS:
        raise ProtocolError("an entry of a key_transfer has an unknown key_id or a wrong length")
    return KeyTransfer(KeyId(key_id), wrapped)
