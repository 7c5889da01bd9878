"""Protected APDUs: security control, IV, and the glo- services (IEC 62056-5-3 clause 5.7.2).

A protected APDU is tag || length || security control (1) || invocation counter (4) || payload. The IV is the sender's
system title (8) || invocation counter (4); the tag has 12 octets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from hsmkm.dlms.octets import Octets, encode_counted
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


@dataclass(frozen=True, slots=True)
class Ciphered:
    """A protected APDU taken apart; nothing of it is trusted before `unprotect`."""

    tag: GloTag
    security_control: int
    counter: int
    payload: bytes

    def encode(self) -> bytes:
        """Write the APDU."""
        body = bytes([self.security_control]) + self.counter.to_bytes(4, "big") + self.payload
        return bytes([self.tag]) + encode_counted(body)


def security_control(suite: SecuritySuite, protection: int = BOTH) -> int:
    """The security control octet of unicast APDUs."""
    return int(suite) | protection


def initialisation_vector(title: SystemTitle, counter: int) -> bytes:
    """The 12 octets of the IV; raises RefusedError when the counter has no value left."""
    if not 0 <= counter <= HIGHEST_COUNTER:
        raise RefusedError("the invocation counter is used up", hint="renew the key")
    return title.octets + counter.to_bytes(4, "big")


def parse(apdu: bytes) -> Ciphered:
    """Take a protected APDU apart; raises ProtocolError."""
    cursor = Octets(apdu)
    tag = cursor.octet()
    if tag not in GloTag.__members__.values():
        raise ProtocolError(f"tag {tag:02X} is not that of an APDU under a global key")
    body = Octets(cursor.counted())
    cursor.end()
    return Ciphered(GloTag(tag), body.octet(), body.unsigned(4), body.rest())


def protect(apdu: bytes, key: CipherKey, control: int, title: SystemTitle, counter: int) -> bytes:
    """Protect a plain APDU as its glo- form for the sender `title`."""
    octets = key.protect(initialisation_vector(title, counter), control, b"", apdu)
    if control & BOTH == AUTHENTICATION:
        octets = apdu + octets
    return Ciphered(GLO_OF_PLAIN[apdu[0]], control, counter, octets).encode()


def unprotect(ciphered: Ciphered, key: CipherKey, title: SystemTitle) -> bytes:
    """Give the plain APDU that `title` protected.

    Raises IntegrityError for a bad tag, for an APDU without tag, and for a plain APDU that its outer tag does not name;
    ProtocolError for one that is broadcast or compressed.
    """
    control = ciphered.security_control
    if control & (BROADCAST | COMPRESSION):
        raise ProtocolError("broadcast or compressed answers are not supported")
    if not control & AUTHENTICATION or len(ciphered.payload) < TAG_OCTETS:
        raise IntegrityError("the APDU carries no authentication tag")
    plain = key.unprotect(initialisation_vector(title, ciphered.counter), control, b"", ciphered.payload)
    if not plain or GLO_OF_PLAIN.get(plain[0]) is not ciphered.tag:
        raise IntegrityError("the protected APDU is not the service that its tag names")
    return plain
