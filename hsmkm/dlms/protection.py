"""What a security policy demands of requests and responses (attribute security_policy of Security Setup).

| version 0 (enum)             | version 1 (bits)                                             |
|------------------------------|--------------------------------------------------------------|
| 0 nothing, 1 authenticated,  | 0x04 authenticated, 0x08 encrypted, 0x10 signed request,     |
| 2 encrypted, 3 both          | 0x20 authenticated, 0x40 encrypted, 0x80 signed response     |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from hsmkm.errors import ProtocolError


class Protection(IntFlag):
    """How an APDU is protected; the first two by its security control, the last by general-signing."""

    NONE = 0
    AUTHENTICATED = 1
    ENCRYPTED = 2
    SIGNED = 4
    CIPHERED = AUTHENTICATED | ENCRYPTED

    def covers(self, demanded: Protection) -> bool:
        """Whether this gives all of what is demanded."""
        return self & demanded == demanded


_VERSION_0_HIGHEST = 3
_REQUEST_SHIFT = 2
_RESPONSE_SHIFT = 5
_ALL = Protection.CIPHERED | Protection.SIGNED
_VERSION_1_BITS = int(_ALL) << _REQUEST_SHIFT | int(_ALL) << _RESPONSE_SHIFT


@dataclass(frozen=True, slots=True)
class SecurityPolicy:
    """The least protection of each direction."""

    request: Protection = Protection.CIPHERED
    response: Protection = Protection.CIPHERED

    @classmethod
    def parse(cls, version: int, value: int) -> SecurityPolicy:
        """Read the attribute of a Security Setup of version 0 or 1; raises ProtocolError for a value outside of it."""
        if version == 0:
            if not 0 <= value <= _VERSION_0_HIGHEST:
                raise ProtocolError(f"security policy {value} is not one of version 0")
            return cls(Protection(value), Protection(value))
        if value & ~_VERSION_1_BITS:
            raise ProtocolError(f"security policy {value:#04x} is not one of version 1")
        return cls(Protection(value >> _REQUEST_SHIFT & _ALL), Protection(value >> _RESPONSE_SHIFT & _ALL))

    def value(self, version: int) -> int:
        """Write the attribute; raises ProtocolError where version 0 has no value for it."""
        if version:
            return int(self.request) << _REQUEST_SHIFT | int(self.response) << _RESPONSE_SHIFT
        if self.request != self.response or self.request & Protection.SIGNED:
            raise ProtocolError("version 0 protects both directions alike, and never by a signature")
        return int(self.request)

    def strengthens(self, other: SecurityPolicy) -> bool:
        """Whether this demands at least what `other` does; a meter's policy can only be strengthened."""
        return self.request.covers(other.request) and self.response.covers(other.response)


AUTHENTICATED_AND_ENCRYPTED = SecurityPolicy()
UNPROTECTED = SecurityPolicy(Protection.NONE, Protection.NONE)
EVERYTHING = SecurityPolicy(_ALL, _ALL)
