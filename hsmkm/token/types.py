"""The values other layers hold on behalf of the token; importing them does not load a PKCS#11 module."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import TypeAlias

MAC_OCTETS = 32
SECRET_OCTETS = range(8, 65, 8)
MAC_MECHANISM = "HMAC-SHA256"


class KeyRole(StrEnum):
    """What a meter uses an AES key of its suite for; the value is the name used in packages and in the store."""

    MASTER = "master"
    GUEK = "guek"
    GBEK = "gbek"
    GAK = "gak"


class SecretRole(StrEnum):
    """Secrets that prove a client: the LLS password (mechanism 1) and the HLS secret (mechanisms 3, 4 and 6).

    They have 8 to 64 octets, a multiple of 8, whatever the suite, and are wrapped as RFC 5649 says: AES key wrap as
    RFC 3394 says takes no 8 octets. Other lengths are refused, because tokens pad them with zeros and do not tell.
    """

    LLS = "lls"
    HLS = "hls"


class SessionRole(StrEnum):
    """Keys that live for one association (dedicated) or one exchange (ephemeral), and are never stored."""

    DEDICATED = "dedicated"
    EPHEMERAL = "ephemeral"


class CarrierRole(StrEnum):
    """Keys that exist only to carry other keys from one token to another."""

    PACKAGE = "package"
    AGREED = "agreed"
    LINE = "line"


MeterRole: TypeAlias = KeyRole | SecretRole


class Digest(StrEnum):
    """The hashes of HLS: mechanism 3, 4 and 6."""

    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"


class Use(Enum):
    """What a session key may do: travel, work, or, for the one provisioning it is born in, both."""

    TRANSPORT = "transport"
    IN_USE = "in use"
    BIRTH = "birth"


@dataclass(frozen=True, slots=True)
class Mac:
    """An HMAC-SHA256 made in the token: 32 octets, and the number of the integrity key that made it."""

    key_number: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """A key wrapped under a storage key of this token: 8 octets longer than the key (RFC 3394; secrets RFC 5649)."""

    storage_key: int
    wrapped: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """Where a party's token is and how it is reached.

    `profile` names a file of tokens/; `uri` is an RFC 7512 address; `pin` and `so_pin` are PIN sources, never PINs;
    `module` is the path of the PKCS#11 module, or empty for the profile's own; `kdf_on_host` is the policy that allows
    a derived key to pass through host memory once.
    """

    profile: str
    uri: str
    pin: str
    so_pin: str
    module: str
    home: Path
    kdf_on_host: bool


KEY_OCTETS = {0: 16, 1: 16, 2: 32}
"""Octets of a key by security suite (IEC 62056-5-3, table of security suites)."""


def key_octets(suite: int) -> int:
    """Return the length of a symmetric key of a DLMS security suite: 16 octets in suites 0 and 1, 32 in suite 2.

    Raises ValueError for a suite that does not exist.
    """
    try:
        return KEY_OCTETS[suite]
    except KeyError as error:
        raise ValueError(f"no security suite {suite}") from error
