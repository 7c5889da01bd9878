"""The nouns of DLMS/COSEM that every other module speaks in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from hsmkm.errors import InputError, RefusedError

SYSTEM_TITLE_OCTETS = 8
LOGICAL_NAME_OCTETS = 6


class SecuritySuite(IntEnum):
    """Security suites of IEC 62056-5-3; suite 2 alone uses 256-bit keys."""

    SUITE_0 = 0
    SUITE_1 = 1
    SUITE_2 = 2

    @property
    def key_octets(self) -> int:
        """Length of every symmetric key of the suite, in octets."""
        return 32 if self is SecuritySuite.SUITE_2 else 16

    @property
    def wrapped_octets(self) -> int:
        """Length of a key of the suite after AES key wrap (RFC 3394), in octets."""
        return self.key_octets + 8

    @property
    def coordinate_octets(self) -> int:
        """Length of a coordinate on the curve of the suite: 32 on P-256, 48 on P-384.

        Raises RefusedError for suite 0, which has no public keys.
        """
        if self is SecuritySuite.SUITE_0:
            raise RefusedError("security suite 0 has no public keys", hint="use suite 1 or 2")
        return 48 if self is SecuritySuite.SUITE_2 else 32

    @property
    def point_octets(self) -> int:
        """Length of X || Y; raises RefusedError for suite 0. A signature r || s has the same length."""
        return 2 * self.coordinate_octets


class KeyId(IntEnum):
    """key_id of Security Setup's key_transfer and key_agreement."""

    GUEK = 0
    GBEK = 1
    GAK = 2
    MASTER = 3


class Mechanism(IntEnum):
    """Authentication mechanisms, the last arc of 2.16.756.5.8.2.n."""

    NONE = 0
    LLS = 1
    HLS_MANUFACTURER = 2
    HLS_MD5 = 3
    HLS_SHA1 = 4
    HLS_GMAC = 5
    HLS_SHA256 = 6
    HLS_ECDSA = 7

    @property
    def is_hls(self) -> bool:
        """Whether both sides prove themselves by answers to challenges."""
        return self >= Mechanism.HLS_MANUFACTURER


WEAK_MECHANISMS = frozenset({Mechanism.HLS_MD5, Mechanism.HLS_SHA1})
"""Mechanisms on broken digests; settings have to allow them."""


@dataclass(frozen=True, order=True, slots=True)
class SystemTitle:
    """The 8 octets that are half of every IV of their owner: FLAG id in ASCII, then 5 octets unique to its holder.

    Raises InputError for any other length.
    """

    octets: bytes

    def __post_init__(self) -> None:
        if len(self.octets) != SYSTEM_TITLE_OCTETS:
            raise InputError(f"a system title has 8 octets, not {len(self.octets)}")

    @classmethod
    def parse(cls, text: str) -> SystemTitle:
        """Read 16 hexadecimal digits; raises InputError."""
        if not re.fullmatch(r"[0-9A-Fa-f]{16}", text, re.ASCII):
            raise InputError("a system title is 16 hexadecimal digits", hint="for example 4D4D4D0000BC614E")
        return cls(bytes.fromhex(text))

    @classmethod
    def from_serial(cls, flag: str, serial: int) -> SystemTitle:
        """Join a FLAG id and a serial number of at most 40 bits, big endian; raises InputError."""
        if not re.fullmatch(r"[A-Z]{3}", flag, re.ASCII):
            raise InputError("a FLAG id is three capital letters", hint="see the list of the DLMS User Association")
        if not 0 <= serial < 1 << 40:
            raise InputError("a serial number in a system title lies between 0 and 2^40 - 1")
        return cls(flag.encode("ascii") + serial.to_bytes(5, "big"))

    @property
    def flag(self) -> str:
        """The manufacturer's FLAG id as text; octets outside of ASCII show as question marks."""
        return "".join(chr(octet) if octet < 0x80 else "?" for octet in self.octets[:3])  # noqa: PLR2004 - end of ASCII

    def __str__(self) -> str:
        return self.octets.hex().upper()

    def __repr__(self) -> str:
        return f"SystemTitle({self})"


@dataclass(frozen=True, order=True, slots=True)
class LogicalName:
    """The 6-octet name of a COSEM object (OBIS code, IEC 62056-6-1); raises InputError for any other length."""

    octets: bytes

    def __post_init__(self) -> None:
        if len(self.octets) != LOGICAL_NAME_OCTETS:
            raise InputError(f"a logical name has 6 octets, not {len(self.octets)}")

    @classmethod
    def parse(cls, text: str) -> LogicalName:
        """Read six decimal numbers with dots between; raises InputError."""
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){5}", text, re.ASCII):
            raise InputError("a logical name is six numbers with dots between", hint="for example 0.0.43.0.0.255")
        groups = [int(group) for group in text.split(".")]
        if max(groups) > 255:  # noqa: PLR2004 - the largest octet
            raise InputError("a group of a logical name is at most 255")
        return cls(bytes(groups))

    def __str__(self) -> str:
        return ".".join(str(group) for group in self.octets)

    def __repr__(self) -> str:
        return f"LogicalName({self})"


@dataclass(frozen=True, order=True, slots=True)
class AttributeRef:
    """One attribute of one object: Cosem-Attribute-Descriptor.

    Raises InputError for a class of more than two octets, and an attribute of more than one.
    """

    class_id: int
    logical_name: LogicalName
    attribute: int

    def __post_init__(self) -> None:
        if not (0 <= self.class_id <= 0xFFFF and 0 <= self.attribute <= 0xFF):  # noqa: PLR2004 - two octets, and one
            raise InputError("a class is at most 65535, and an attribute at most 255")

    def __str__(self) -> str:
        return f"{self.class_id}/{self.logical_name}/{self.attribute}"

    @classmethod
    def parse(cls, text: str) -> AttributeRef:
        """Read what `str` writes; raises InputError."""
        match = re.fullmatch(r"([0-9]{1,5})/([0-9.]+)/([0-9]{1,3})", text, re.ASCII)
        if match is None:
            raise InputError(f"{text[:40]!r} names no attribute", hint="class/logical name/attribute")
        return cls(int(match[1]), LogicalName.parse(match[2]), int(match[3]))


@dataclass(frozen=True, order=True, slots=True)
class MethodRef:
    """One method of one object: Cosem-Method-Descriptor."""

    class_id: int
    logical_name: LogicalName
    method: int

    def __str__(self) -> str:
        return f"{self.class_id}/{self.logical_name}/{self.method}"
