"""The general- APDUs, which name their sender themselves (IEC 62056-5-3 clauses 5.7.2.4 to 5.7.2.8).

    general-glo-ciphering DB, general-ded-ciphering DC: system-title, ciphered content
    general-ciphering     DD: header, key-info OPTIONAL, ciphered content
    general-signing       DF: header, content, signature

A header is transaction-id, originator and recipient system title, date-time and other-information, each an octet-string
with its length; with these lengths it is authenticated after the GAK, and signed. What is signed after it is the
content without its length, as gurux-dlms does it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from hsmkm.dlms.ciphering import Content
from hsmkm.dlms.octets import Octets, encode_counted
from hsmkm.dlms.types import SystemTitle
from hsmkm.errors import InputError, ProtocolError

GENERAL_GLO = 0xDB
GENERAL_DED = 0xDC
GENERAL_CIPHERING = 0xDD
GENERAL_SIGNING = 0xDF

LARGEST_APDU = 65_535
"""Octets of an APDU in a frame of the TCP wrapper, whose length has two octets."""

LONGEST_FIELD = 255
TRANSACTION_OCTETS = 8


class KeyParameters(IntEnum):
    """key-parameters of an agreed key."""

    ONE_PASS = 1
    STATIC = 2


@dataclass(frozen=True, slots=True)
class IdentifiedKey:
    """A global key that both sides have: 0 the GUEK, 1 the GBEK."""

    key_id: int


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A fresh key under the master key (kek-id 0), RFC 3394."""

    wrapped: bytes = field(repr=False)
    kek_id: int = 0


@dataclass(frozen=True, slots=True)
class AgreedKey:
    """A key by One-Pass Diffie-Hellman (data = Q || signature) or the Static Unified Model (no data)."""

    parameters: KeyParameters
    data: bytes = b""


KeyInfo = IdentifiedKey | WrappedKey | AgreedKey


@dataclass(frozen=True, slots=True)
class Header:
    """Who says it to whom in which transaction; a recipient of None is everybody."""

    transaction: bytes
    originator: SystemTitle
    recipient: SystemTitle | None
    date_time: bytes = b""
    other_information: bytes = b""

    def encode(self) -> bytes:
        """Write the five octet-strings with their lengths."""
        recipient = b"" if self.recipient is None else self.recipient.octets
        fields = (self.transaction, self.originator.octets, recipient, self.date_time, self.other_information)
        return b"".join(encode_counted(value) for value in fields)

    @classmethod
    def read(cls, cursor: Octets) -> Header:
        """Read the five octet-strings; raises ProtocolError for one too long, and for titles not of 8 octets."""
        fields = [_short(cursor) for _ in range(5)]
        return cls(fields[0], _title(fields[1]), _title(fields[2]) if fields[2] else None, fields[3], fields[4])

    def answered_by(self, recipient: SystemTitle) -> Header:
        """The header of the answer: same transaction, the other direction."""
        return Header(self.transaction, recipient, self.originator)

    @property
    def transaction_number(self) -> int:
        """The transaction-id as a number; raises ProtocolError unless it has 1 to 8 octets."""
        if not 0 < len(self.transaction) <= TRANSACTION_OCTETS:
            raise ProtocolError("a transaction-id has 1 to 8 octets here")
        return int.from_bytes(self.transaction, "big")


@dataclass(frozen=True, slots=True)
class GeneralKeyed:
    """general-glo-ciphering, or general-ded-ciphering where `dedicated`."""

    dedicated: bool
    title: SystemTitle
    content: Content

    def encode(self) -> bytes:
        """Write the APDU."""
        tag = GENERAL_DED if self.dedicated else GENERAL_GLO
        return bytes([tag]) + encode_counted(self.title.octets) + encode_counted(self.content.encode())


@dataclass(frozen=True, slots=True)
class GeneralCiphering:
    """general-ciphering; without key-info it is under the key of the transaction's earlier APDU."""

    header: Header
    key_info: KeyInfo | None
    content: Content

    def encode(self) -> bytes:
        """Write the APDU."""
        head = bytes([GENERAL_CIPHERING]) + self.header.encode()
        return head + _encode_key_info(self.key_info) + encode_counted(self.content.encode())


@dataclass(frozen=True, slots=True)
class GeneralSigning:
    """general-signing around a plain or ciphered APDU; the signature is r || s."""

    header: Header
    content: bytes
    signature: bytes

    def encode(self) -> bytes:
        """Write the APDU."""
        head = bytes([GENERAL_SIGNING]) + self.header.encode()
        return head + encode_counted(self.content) + encode_counted(self.signature)


GeneralApdu = GeneralKeyed | GeneralCiphering | GeneralSigning


def signed_octets(header: Header, content: bytes) -> bytes:
    """What the signature of a general-signing APDU covers."""
    return header.encode() + content


def parse(apdu: bytes) -> GeneralApdu:
    """Take a general- APDU apart; raises ProtocolError."""
    cursor = Octets(apdu)
    tag = cursor.octet()
    parsed: GeneralApdu
    if tag in (GENERAL_GLO, GENERAL_DED):
        title = _title(_short(cursor))
        parsed = GeneralKeyed(tag == GENERAL_DED, title, Content.parse(cursor.counted()))
    elif tag == GENERAL_CIPHERING:
        header = Header.read(cursor)
        info = _read_key_info(cursor) if _present(cursor) else None
        parsed = GeneralCiphering(header, info, Content.parse(cursor.counted()))
    elif tag == GENERAL_SIGNING:
        parsed = GeneralSigning(Header.read(cursor), cursor.counted(), cursor.counted())
    else:
        raise ProtocolError(f"tag {tag:02X} is not that of a general- APDU")
    cursor.end()
    return parsed


def _present(cursor: Octets) -> bool:
    """Read whether there is a key-info: no tag covers this octet, so nothing but 0 and 1 is taken for it."""
    octet = cursor.octet()
    if octet > 1:
        raise ProtocolError("the presence of the key-info is neither 0 nor 1")
    return octet == 1


def _short(cursor: Octets) -> bytes:
    value = cursor.counted()
    if len(value) > LONGEST_FIELD:
        raise ProtocolError("a field of a general- APDU is too long")
    return value


def _title(octets: bytes) -> SystemTitle:
    try:
        return SystemTitle(octets)
    except InputError as error:
        raise ProtocolError(error.message) from None


def _encode_key_info(info: KeyInfo | None) -> bytes:
    if info is None:
        return b"\0"
    if isinstance(info, IdentifiedKey):
        return bytes([1, 0, info.key_id])
    if isinstance(info, WrappedKey):
        return bytes([1, 1, info.kek_id]) + encode_counted(info.wrapped)
    return bytes([1, 2, 1, info.parameters]) + encode_counted(info.data)


def _read_key_info(cursor: Octets) -> KeyInfo:
    choice = cursor.octet()
    if choice == 0:
        return IdentifiedKey(cursor.octet())
    if choice == 1:
        kek_id, wrapped = cursor.octet(), _short(cursor)
        return WrappedKey(wrapped, kek_id)
    parameters, data = _short(cursor) if choice == 2 else b"", _short(cursor)  # noqa: PLR2004 - agreed-key
    if len(parameters) != 1 or parameters[0] not in KeyParameters.__members__.values():
        raise ProtocolError("the key-info is of no known kind")
    return AgreedKey(KeyParameters(parameters[0]), data)
