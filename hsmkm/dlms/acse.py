"""Opening and closing an association: AARQ, AARE, RLRQ, RLRE (BER; IEC 62056-5-3 clause 7.2, X.227).

Only definite lengths are read, in short and long form; unknown fields are skipped, repeated ones refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from hsmkm.dlms.octets import Octets, encode_counted
from hsmkm.errors import ProtocolError

AARQ = 0x60
AARE = 0x61
RLRQ = 0x62
RLRE = 0x63

_CONTEXT_OID = bytes.fromhex("608574050801")
_MECHANISM_OID = bytes.fromhex("608574050802")
_AUTHENTICATION_REQUIREMENT = bytes.fromhex("0780")
_MULTI_OCTET_TAG = 0x1F
_LONGEST_TAG = 4

_OBJECT_IDENTIFIER = 0x06
_INTEGER = 0x02
_OCTET_STRING = 0x04
_CHARSTRING = 0x80
_USER_INFORMATION = 0xBE


class Context(IntEnum):
    """Application contexts, the last arc of 2.16.756.5.8.1.n: logical names, with and without ciphering."""

    LOGICAL_NAMES = 1
    LOGICAL_NAMES_CIPHERED = 3


class DiagnosticSource(IntEnum):
    """Who gives the diagnostic of an AARE."""

    USER = 1
    PROVIDER = 2


USER_DIAGNOSTICS: Mapping[int, str] = {
    0: "null",
    1: "no reason given",
    2: "application context name not supported",
    3: "calling AP title not recognised",
    4: "calling AP invocation identifier not recognised",
    5: "calling AE qualifier not recognised",
    6: "calling AE invocation identifier not recognised",
    7: "called AP title not recognised",
    8: "called AP invocation identifier not recognised",
    9: "called AE qualifier not recognised",
    10: "called AE invocation identifier not recognised",
    11: "authentication mechanism name not recognised",
    12: "authentication mechanism name required",
    13: "authentication failure",
    14: "authentication required",
}
AUTHENTICATION_REQUIRED = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationRequest:
    """AARQ; `initiate` is the xDLMS InitiateRequest, plain or ciphered."""

    context: int
    initiate: bytes
    calling_title: bytes | None = None
    mechanism: int | None = None
    challenge: bytes | None = None

    def encode(self) -> bytes:
        """Write the APDU."""
        body = _field(0xA1, _oid(_CONTEXT_OID, self.context))
        if self.calling_title is not None:
            body += _field(0xA6, _field(_OCTET_STRING, self.calling_title))
        if self.mechanism is not None:
            body += _field(0x8A, _AUTHENTICATION_REQUIREMENT)
            body += _field(0x8B, _MECHANISM_OID + bytes([self.mechanism]))
        if self.challenge is not None:
            body += _field(0xAC, _field(_CHARSTRING, self.challenge))
        return _field(AARQ, body + _field(_USER_INFORMATION, _field(_OCTET_STRING, self.initiate)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationResponse:
    """AARE; result 0 is accepted, `user_information` holds the InitiateResponse or an error."""

    context: int
    result: int
    source: int = DiagnosticSource.USER
    diagnostic: int = 0
    responding_title: bytes | None = None
    mechanism: int | None = None
    challenge: bytes | None = None
    user_information: bytes | None = None

    def encode(self) -> bytes:
        """Write the APDU."""
        body = _field(0xA1, _oid(_CONTEXT_OID, self.context))
        body += _field(0xA2, _field(_INTEGER, bytes([self.result])))
        body += _field(0xA3, _field(0xA0 | self.source, _field(_INTEGER, bytes([self.diagnostic]))))
        if self.responding_title is not None:
            body += _field(0xA4, _field(_OCTET_STRING, self.responding_title))
        if self.mechanism is not None:
            body += _field(0x88, _AUTHENTICATION_REQUIREMENT)
            body += _field(0x89, _MECHANISM_OID + bytes([self.mechanism]))
        if self.challenge is not None:
            body += _field(0xAA, _field(_CHARSTRING, self.challenge))
        if self.user_information is not None:
            body += _field(_USER_INFORMATION, _field(_OCTET_STRING, self.user_information))
        return _field(AARE, body)

    @property
    def reason(self) -> str:
        """The diagnostic in words."""
        if self.source == DiagnosticSource.USER:
            return USER_DIAGNOSTICS.get(self.diagnostic, f"diagnostic {self.diagnostic}")
        return f"diagnostic {self.diagnostic} of the service provider"


def parse_request(apdu: bytes) -> AssociationRequest:
    """Read an AARQ; raises ProtocolError."""
    fields = _fields(apdu, AARQ)
    return AssociationRequest(
        context=_context(fields),
        initiate=_inner(_needed(fields, _USER_INFORMATION), _OCTET_STRING),
        calling_title=_optional(fields, 0xA6, _OCTET_STRING),
        mechanism=_mechanism(fields, 0x8B),
        challenge=_optional(fields, 0xAC, _CHARSTRING),
    )


def parse_response(apdu: bytes) -> AssociationResponse:
    """Read an AARE; raises ProtocolError."""
    fields = _fields(apdu, AARE)
    diagnostic = Octets(_needed(fields, 0xA3))
    source, value = _tag(diagnostic), diagnostic.counted()
    diagnostic.end()
    if source not in {0xA1, 0xA2}:
        raise ProtocolError("the diagnostic of an AARE comes from the service user or provider")
    return AssociationResponse(
        context=_context(fields),
        result=_small_integer(_needed(fields, 0xA2)),
        source=source & 0x0F,
        diagnostic=_small_integer(value),
        responding_title=_optional(fields, 0xA4, _OCTET_STRING),
        mechanism=_mechanism(fields, 0x89),
        challenge=_optional(fields, 0xAA, _CHARSTRING),
        user_information=_optional(fields, _USER_INFORMATION, _OCTET_STRING),
    )


def release_request() -> bytes:
    """Write an RLRQ, reason normal."""
    return _field(RLRQ, _field(0x80, b"\x00"))


def release_response() -> bytes:
    """Write an RLRE, reason normal."""
    return _field(RLRE, _field(0x80, b"\x00"))


def parse_release_request(apdu: bytes) -> None:
    """Check an RLRQ; raises ProtocolError."""
    _fields(apdu, RLRQ)


def parse_release_response(apdu: bytes) -> None:
    """Check an RLRE; raises ProtocolError."""
    _fields(apdu, RLRE)


def _field(tag: int, value: bytes) -> bytes:
    return bytes([tag]) + encode_counted(value)


def _oid(prefix: bytes, last: int) -> bytes:
    return _field(_OBJECT_IDENTIFIER, prefix + bytes([last]))


def _tag(cursor: Octets) -> int:
    tag = cursor.octet()
    if tag & _MULTI_OCTET_TAG != _MULTI_OCTET_TAG:
        return tag
    for _ in range(_LONGEST_TAG - 1):
        octet = cursor.octet()
        tag = tag << 8 | octet
        if not octet & 0x80:
            return tag
    raise ProtocolError("a BER tag is too long")


def _fields(apdu: bytes, tag: int) -> dict[int, bytes]:
    cursor = Octets(apdu)
    if cursor.octet() != tag:
        raise ProtocolError(f"tag {apdu[0]:02X} came where {tag:02X} was expected")
    body = Octets(cursor.counted())
    cursor.end()
    fields: dict[int, bytes] = {}
    while body.left:
        name = _tag(body)
        if name in fields:
            raise ProtocolError(f"field {name:02X} comes twice")
        fields[name] = body.counted()
    return fields


def _needed(fields: Mapping[int, bytes], name: int) -> bytes:
    if name not in fields:
        raise ProtocolError(f"field {name:02X} is missing")
    return fields[name]


def _inner(value: bytes, tag: int) -> bytes:
    cursor = Octets(value)
    if _tag(cursor) != tag:
        raise ProtocolError(f"a value of tag {tag:02X} was expected inside a field")
    content = cursor.counted()
    cursor.end()
    return content


def _optional(fields: Mapping[int, bytes], name: int, tag: int) -> bytes | None:
    return _inner(fields[name], tag) if name in fields else None


def _small_integer(value: bytes) -> int:
    content = _inner(value, _INTEGER)
    if len(content) != 1:
        raise ProtocolError("a result or diagnostic has one octet")
    return content[0]


def _context(fields: Mapping[int, bytes]) -> int:
    return _last_arc(_inner(_needed(fields, 0xA1), _OBJECT_IDENTIFIER), _CONTEXT_OID)


def _mechanism(fields: Mapping[int, bytes], name: int) -> int | None:
    return _last_arc(fields[name], _MECHANISM_OID) if name in fields else None


def _last_arc(oid: bytes, prefix: bytes) -> int:
    if len(oid) != len(prefix) + 1 or oid[:-1] != prefix:
        raise ProtocolError("an object identifier is not one of DLMS")
    return oid[-1]
