"""Protected APDUs: security control, IV, and the glo- and ded- services (IEC 62056-5-3 clause 5.7.2).

Protected content is security control (1) || invocation counter (4) || payload; a glo- or ded- APDU is tag || length ||
content. The IV is the sender's system title (8) || invocation counter (4); the tag has 12 octets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from hsmkm.dlms.octets import Octets, encode_counted
from hsmkm.dlms.suspicion import RepeatedCounterError
from hsmkm.dlms.types import SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError, ProtocolError, RefusedError

TAG_OCTETS = 12
LARGEST_OVERHEAD = 1 + 5 + 1 + 4 + TAG_OCTETS
"""Octets that protection adds at most: tag, length, security control, counter, authentication tag."""

HIGHEST_COUNTER = 0xFFFF_FFFF

SUITE_MASK = 0x0F
AUTHENTICATION = 0x10
ENCRYPTION = 0x20
BROADCAST = 0x40
COMPRESSION = 0x80
BOTH = AUTHENTICATION | ENCRYPTION


class CipherKey(Protocol):
    """A GUEK (or another block cipher key) with its GAK, whatever holds them.

    `iv` has 12 octets. Bit 4 of `security_control` asks for authentication, bit 5 for encryption. The holder builds the
    additional authenticated data itself: SC || GAK || header, and the data too where it is only authenticated.
    """

    def protect(self, iv: bytes, security_control: int, header: bytes, data: bytes) -> bytes:
        """Give ciphertext || tag for both, ciphertext for encryption only, the 12-octet tag for authentication only."""
        ...

    def unprotect(self, iv: bytes, security_control: int, header: bytes, data: bytes) -> bytes:
        """Give the plaintext of ciphertext || tag, ciphertext, or data || tag; raises IntegrityError on a bad tag."""
        ...


class InvocationCounter(Protocol):
    """Hands out counter values for one key and sender; each is durable before it is handed out, none comes twice."""

    def next(self) -> int:
        """Give the next value, at most 2^32 - 1; raises RefusedError when they are used up."""
        ...


class ReceiveCounter(Protocol):
    """Knows the lowest acceptable counter of one key and sender."""

    def accept(self, value: int) -> None:
        """Take the counter of an APDU whose tag fits; raises IntegrityError for one below the lowest acceptable."""
        ...


class FreshCounter:
    """The counters of a key that was made for one exchange."""

    def __init__(self) -> None:
        self._next = 1
        self._lowest = 0

    def next(self) -> int:
        """Give 1, 2, 3 and so on; raises RefusedError at the end."""
        if self._next > HIGHEST_COUNTER:
            raise RefusedError("the invocation counter is used up")
        self._next += 1
        return self._next - 1

    def accept(self, value: int) -> None:
        """Take a counter; raises IntegrityError for a replay."""
        if value < self._lowest:
            raise RepeatedCounterError("the invocation counter is below the lowest acceptable one")
        self._lowest = value + 1


class GloTag(IntEnum):
    """Tags of the APDUs protected under a global key."""

    INITIATE_REQUEST = 0x21
    INITIATE_RESPONSE = 0x28
    GET_REQUEST = 0xC8
    SET_REQUEST = 0xC9
    ACTION_REQUEST = 0xCB
    GET_RESPONSE = 0xCC
    SET_RESPONSE = 0xCD
    ACTION_RESPONSE = 0xCF


GLO_OF_PLAIN = {
    0x01: GloTag.INITIATE_REQUEST,
    0x08: GloTag.INITIATE_RESPONSE,
    0xC0: GloTag.GET_REQUEST,
    0xC1: GloTag.SET_REQUEST,
    0xC3: GloTag.ACTION_REQUEST,
    0xC4: GloTag.GET_RESPONSE,
    0xC5: GloTag.SET_RESPONSE,
    0xC7: GloTag.ACTION_RESPONSE,
}


class DedTag(IntEnum):
    """Tags of the APDUs protected under a dedicated key."""

    GET_REQUEST = 0xD0
    SET_REQUEST = 0xD1
    ACTION_REQUEST = 0xD3
    GET_RESPONSE = 0xD4
    SET_RESPONSE = 0xD5
    ACTION_RESPONSE = 0xD7


DED_OF_PLAIN = {
    0xC0: DedTag.GET_REQUEST,
    0xC1: DedTag.SET_REQUEST,
    0xC3: DedTag.ACTION_REQUEST,
    0xC4: DedTag.GET_RESPONSE,
    0xC5: DedTag.SET_RESPONSE,
    0xC7: DedTag.ACTION_RESPONSE,
}


@dataclass(frozen=True, slots=True)
class Content:
    """Protected content taken apart; nothing of it is trusted before `unseal`."""

    security_control: int
    counter: int
    payload: bytes

    @classmethod
    def parse(cls, octets: bytes) -> Content:
        """Take it apart; raises ProtocolError."""
        cursor = Octets(octets)
        return cls(cursor.octet(), cursor.unsigned(4), cursor.rest())

    def encode(self) -> bytes:
        """Write it."""
        return bytes([self.security_control]) + self.counter.to_bytes(4, "big") + self.payload

    def belongs_to(self, suite: SecuritySuite) -> bool:
        """Whether the security control names this suite."""
        return self.security_control & SUITE_MASK == suite


@dataclass(frozen=True, slots=True)
class Ciphered:
    """A glo- or ded- APDU taken apart; nothing of it is trusted before `unprotect`."""

    tag: GloTag | DedTag
    security_control: int
    counter: int
    payload: bytes

    @property
    def content(self) -> Content:
        """What is inside of the tag."""
        return Content(self.security_control, self.counter, self.payload)

    def encode(self) -> bytes:
        """Write the APDU."""
        return bytes([self.tag]) + encode_counted(self.content.encode())


def security_control(suite: SecuritySuite, protection: int = BOTH) -> int:
    """The security control octet of unicast APDUs."""
    return int(suite) | protection


def initialisation_vector(title: SystemTitle, counter: int) -> bytes:
    """The 12 octets of the IV; raises RefusedError when the counter has no value left."""
    if not 0 <= counter <= HIGHEST_COUNTER:
        raise RefusedError("the invocation counter is used up", hint="renew the key")
    return title.octets + counter.to_bytes(4, "big")


def parse(apdu: bytes) -> Ciphered:
    """Take a glo- or ded- APDU apart; raises ProtocolError."""
    cursor = Octets(apdu)
    tag = cursor.octet()
    content = Content.parse(cursor.counted())
    cursor.end()
    for tags in (GloTag, DedTag):
        if tag in tags.__members__.values():
            return Ciphered(tags(tag), content.security_control, content.counter, content.payload)
    raise ProtocolError(f"tag {tag:02X} is not that of an APDU under a global or dedicated key")


def seal(apdu: bytes, key: CipherKey, control: int, title: SystemTitle, counter: int, header: bytes = b"") -> Content:
    """Protect a plain APDU for the sender `title`; the header is authenticated with it."""
    octets = key.protect(initialisation_vector(title, counter), control, header, apdu)
    if control & BOTH == AUTHENTICATION:
        octets = apdu + octets
    return Content(control, counter, octets)


def unseal(
    content: Content, key: CipherKey, title: SystemTitle, header: bytes = b"", demanded: int = AUTHENTICATION
) -> bytes:
    """Give the plain APDU that `title` protected.

    Raises IntegrityError for a bad tag and where the security control lacks a demanded bit; ProtocolError for content
    that is compressed, or not protected at all.
    """
    control = content.security_control
    if control & COMPRESSION or not control & BOTH:
        raise ProtocolError("compressed or unprotected content is not supported")
    if demanded & ~control or (control & AUTHENTICATION and len(content.payload) < TAG_OCTETS):
        raise IntegrityError("the APDU carries no authentication tag")
    return key.unprotect(initialisation_vector(title, content.counter), control, header, content.payload)


def protect(apdu: bytes, key: CipherKey, control: int, title: SystemTitle, counter: int) -> bytes:
    """Protect a plain APDU as its glo- form for the sender `title`."""
    content = seal(apdu, key, control, title, counter)
    return bytes([GLO_OF_PLAIN[apdu[0]]]) + encode_counted(content.encode())


def unprotect(ciphered: Ciphered, key: CipherKey, title: SystemTitle, demanded: int = AUTHENTICATION) -> bytes:
    """Give the plain APDU that `title` protected.

    Raises IntegrityError for a bad tag, where the security control lacks a demanded bit, and for a plain APDU that its
    outer tag does not name; ProtocolError for one that is broadcast, compressed, or not protected at all.
    """
    if ciphered.security_control & BROADCAST:
        raise ProtocolError("a broadcast APDU is not a service for one receiver")
    plain = unseal(ciphered.content, key, title, demanded=demanded)
    if not plain or ciphered.tag not in (GLO_OF_PLAIN.get(plain[0]), DED_OF_PLAIN.get(plain[0])):
        raise IntegrityError("the protected APDU is not the service that its tag names")
    return plain
