"""The xDLMS services: Initiate, GET, SET, ACTION and the two ways to answer with an error (IEC 62056-5-3 clause 9).

Selective access, lists and block transfer of requests are not spoken; block transfer of a GET answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

from hsmkm.dlms import axdr
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.octets import Octets, encode_counted
from hsmkm.dlms.types import AttributeRef, LogicalName, MethodRef
from hsmkm.errors import ProtocolError

T = TypeVar("T")

DLMS_VERSION = 6
CONFORMANCE_TAG = bytes.fromhex("5F1F0400")
LN_NAME = bytes.fromhex("0007")

# Conformance bits 9 priority, 11 block transfer with get, 19 get, 20 set, 23 action; bit 0 is the most significant
CLIENT_CONFORMANCE = 0x00_50_19
GENERAL_PROTECTION = 0x40_00_00
"""Conformance bit 1, for the general- APDUs."""

CONFIRMED_HIGH_PRIORITY = 0xC0
INVOKE_MASK = 0x0F

SUCCESS = 0


class Tag(IntEnum):
    """The first octet of a plain APDU."""

    INITIATE_REQUEST = 0x01
    INITIATE_RESPONSE = 0x08
    CONFIRMED_SERVICE_ERROR = 0x0E
    GET_REQUEST = 0xC0
    SET_REQUEST = 0xC1
    ACTION_REQUEST = 0xC3
    GET_RESPONSE = 0xC4
    SET_RESPONSE = 0xC5
    ACTION_RESPONSE = 0xC7
    EXCEPTION_RESPONSE = 0xD8


NORMAL = 1
NEXT_OR_BLOCK = 2

DATA_ACCESS_RESULTS: Mapping[int, str] = {
    1: "hardware fault",
    2: "temporary failure",
    3: "read-write denied",
    4: "object undefined",
    9: "object class inconsistent",
    11: "object unavailable",
    12: "type unmatched",
    13: "scope of access violated",
    14: "data block unavailable",
    15: "long get aborted",
    16: "no long get in progress",
    17: "long set aborted",
    18: "no long set in progress",
    19: "data block number invalid",
    250: "other reason",
}
"""Data-Access-Result; Action-Result uses the same numbers up to 16."""

SERVICE_ERRORS: Mapping[int, str] = {
    1: "operation not possible",
    2: "service not supported",
    3: "other reason",
    4: "PDU too long",
    5: "deciphering error",
    6: "invocation counter error",
}
DECIPHERING_ERROR = 5
INVOCATION_COUNTER_ERROR = 6


@dataclass(frozen=True, slots=True)
class InitiateRequest:
    """What the client proposes; a dedicated key never shows."""

    conformance: int
    max_pdu: int
    dedicated_key: bytes | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        """Write the APDU."""
        key = b"\x00" if self.dedicated_key is None else b"\x01" + encode_counted(self.dedicated_key)
        head = bytes([Tag.INITIATE_REQUEST]) + key + bytes([0, 0, DLMS_VERSION])
        return head + CONFORMANCE_TAG + self.conformance.to_bytes(3, "big") + self.max_pdu.to_bytes(2, "big")


@dataclass(frozen=True, slots=True)
class InitiateResponse:
    """What the server grants; a largest PDU of 0 means no limit."""

    conformance: int
    max_pdu: int

    def encode(self) -> bytes:
        """Write the APDU."""
        head = bytes([Tag.INITIATE_RESPONSE, 0, DLMS_VERSION]) + CONFORMANCE_TAG
        return head + self.conformance.to_bytes(3, "big") + self.max_pdu.to_bytes(2, "big") + LN_NAME


@dataclass(frozen=True, slots=True)
class GetRequest:
    """GET-Request-Normal."""

    invoke: int
    ref: AttributeRef

    def encode(self) -> bytes:
        """Write the APDU."""
        ref = self.ref
        return (
            _head(Tag.GET_REQUEST, NORMAL, self.invoke) + _object(ref.class_id, ref.logical_name, ref.attribute) + b"\0"
        )


@dataclass(frozen=True, slots=True)
class GetNext:
    """GET-Request-Next: block `number` has arrived, send the following one."""

    invoke: int
    number: int

    def encode(self) -> bytes:
        """Write the APDU."""
        return _head(Tag.GET_REQUEST, NEXT_OR_BLOCK, self.invoke) + self.number.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class SetRequest:
    """SET-Request-Normal."""

    invoke: int
    ref: AttributeRef
    data: Data

    def encode(self) -> bytes:
        """Write the APDU."""
        ref = self.ref
        target = _object(ref.class_id, ref.logical_name, ref.attribute)
        return _head(Tag.SET_REQUEST, NORMAL, self.invoke) + target + b"\0" + axdr.encode(self.data)


@dataclass(frozen=True, slots=True)
class ActionRequest:
    """ACTION-Request-Normal."""

    invoke: int
    ref: MethodRef
    data: Data | None = None

    def encode(self) -> bytes:
        """Write the APDU."""
        target = _object(self.ref.class_id, self.ref.logical_name, self.ref.method)
        data = b"\0" if self.data is None else b"\1" + axdr.encode(self.data)
        return _head(Tag.ACTION_REQUEST, NORMAL, self.invoke) + target + data


@dataclass(frozen=True, slots=True)
class GetResult:
    """GET-Response-Normal; `error` is a Data-Access-Result, and `data` is there only where it is 0."""

    invoke: int
    error: int
    data: Data | None = None

    def encode(self) -> bytes:
        """Write the APDU."""
        return _head(Tag.GET_RESPONSE, NORMAL, self.invoke) + _get_data_result(self.error, self.data)


@dataclass(frozen=True, slots=True)
class GetBlock:
    """GET-Response-With-Datablock; `error` as in GetResult."""

    invoke: int
    last: bool
    number: int
    error: int
    raw: bytes = field(default=b"", repr=False)

    def encode(self) -> bytes:
        """Write the APDU."""
        head = _head(Tag.GET_RESPONSE, NEXT_OR_BLOCK, self.invoke)
        block = bytes([self.last]) + self.number.to_bytes(4, "big")
        return head + block + (bytes([1, self.error]) if self.error else b"\0" + encode_counted(self.raw))


@dataclass(frozen=True, slots=True)
class SetResult:
    """SET-Response-Normal; `error` is a Data-Access-Result."""

    invoke: int
    error: int

    def encode(self) -> bytes:
        """Write the APDU."""
        return _head(Tag.SET_RESPONSE, NORMAL, self.invoke) + bytes([self.error])


@dataclass(frozen=True, slots=True)
class ActionResult:
    """ACTION-Response-Normal; `error` is an Action-Result, `data_error` the Data-Access-Result of the return value."""

    invoke: int
    error: int
    data: Data | None = None
    data_error: int = SUCCESS

    def encode(self) -> bytes:
        """Write the APDU."""
        head = _head(Tag.ACTION_RESPONSE, NORMAL, self.invoke) + bytes([self.error])
        if self.data is None and not self.data_error:
            return head + b"\0"
        return head + b"\1" + _get_data_result(self.data_error, self.data)


@dataclass(frozen=True, slots=True)
class ExceptionResponse:
    """Exception-Response; `counter` comes with service error 6 only. It is never protected, and so only a hint."""

    state_error: int
    service_error: int
    counter: int | None = None

    def encode(self) -> bytes:
        """Write the APDU."""
        counter = b"" if self.counter is None else self.counter.to_bytes(4, "big")
        return bytes([Tag.EXCEPTION_RESPONSE, self.state_error, self.service_error]) + counter

    @property
    def reason(self) -> str:
        """The service error in words."""
        return SERVICE_ERRORS.get(self.service_error, f"service error {self.service_error}")


@dataclass(frozen=True, slots=True)
class ConfirmedServiceError:
    """ConfirmedServiceError: which service failed, the kind of error, and its value."""

    service: int
    kind: int
    value: int

    def encode(self) -> bytes:
        """Write the APDU."""
        return bytes([Tag.CONFIRMED_SERVICE_ERROR, self.service, self.kind, self.value])


Request = GetRequest | GetNext | SetRequest | ActionRequest
Response = GetResult | GetBlock | SetResult | ActionResult
ErrorResponse = ExceptionResponse | ConfirmedServiceError


def parse_initiate_request(apdu: bytes) -> InitiateRequest:
    """Read an InitiateRequest; raises ProtocolError."""
    cursor = _cursor(apdu, Tag.INITIATE_REQUEST)
    key = cursor.counted() if cursor.flag() else None
    if cursor.flag():
        cursor.flag()
    _skip_quality_of_service(cursor)
    conformance, max_pdu = _proposal(cursor)
    cursor.end()
    return InitiateRequest(conformance, max_pdu, key)


def parse_initiate_response(apdu: bytes) -> InitiateResponse:
    """Read an InitiateResponse; raises ProtocolError."""
    cursor = _cursor(apdu, Tag.INITIATE_RESPONSE)
    _skip_quality_of_service(cursor)
    conformance, max_pdu = _proposal(cursor)
    cursor.take(len(LN_NAME))
    cursor.end()
    return InitiateResponse(conformance, max_pdu)


def parse_request(apdu: bytes) -> Request:
    """Read a GET, SET or ACTION request; raises ProtocolError."""
    return _service(apdu, _REQUESTS)


def parse_response(apdu: bytes) -> Response:
    """Read the answer to a GET, SET or ACTION; raises ProtocolError."""
    return _service(apdu, _RESPONSES)


def parse_error(apdu: bytes) -> ErrorResponse | None:
    """Read an answer that is an error in clear, or give None where it is something else; raises ProtocolError."""
    cursor = Octets(apdu)
    tag = cursor.octet()
    if tag == Tag.EXCEPTION_RESPONSE:
        state, service = cursor.octet(), cursor.octet()
        counter = cursor.unsigned(4) if service == INVOCATION_COUNTER_ERROR and cursor.left else None
        cursor.end()
        return ExceptionResponse(state, service, counter)
    if tag == Tag.CONFIRMED_SERVICE_ERROR:
        error = ConfirmedServiceError(cursor.octet(), cursor.octet(), cursor.octet())
        cursor.end()
        return error
    return None


def _head(tag: Tag, choice: int, invoke: int) -> bytes:
    return bytes([tag, choice, CONFIRMED_HIGH_PRIORITY | invoke & INVOKE_MASK])


def _object(class_id: int, name: LogicalName, index: int) -> bytes:
    return class_id.to_bytes(2, "big") + name.octets + bytes([index])


def _get_data_result(error: int, data: Data | None) -> bytes:
    return bytes([1, error]) if data is None else b"\0" + axdr.encode(data)


def _cursor(apdu: bytes, tag: Tag) -> Octets:
    cursor = Octets(apdu)
    if cursor.octet() != tag:
        raise ProtocolError(f"tag {apdu[0]:02X} came where {tag:02X} was expected")
    return cursor


def _skip_quality_of_service(cursor: Octets) -> None:
    if cursor.flag():
        cursor.octet()


def _proposal(cursor: Octets) -> tuple[int, int]:
    if cursor.octet() != DLMS_VERSION:
        raise ProtocolError("the DLMS version is not 6")
    if cursor.take(len(CONFORMANCE_TAG)) != CONFORMANCE_TAG:
        raise ProtocolError("the conformance block is malformed")
    return cursor.unsigned(3), cursor.unsigned(2)


def _service(apdu: bytes, readers: Mapping[tuple[int, int], Callable[[int, Octets], T]]) -> T:
    cursor = Octets(apdu)
    tag, choice, invoke = cursor.octet(), cursor.octet(), cursor.octet() & INVOKE_MASK
    reader = readers.get((tag, choice))
    if reader is None:
        raise ProtocolError(f"service {tag:02X} {choice:02X} is not supported here")
    parsed = reader(invoke, cursor)
    cursor.end()
    return parsed


def _target(cursor: Octets) -> tuple[int, LogicalName, int]:
    return cursor.unsigned(2), LogicalName(cursor.take(6)), cursor.octet()


def _attribute(cursor: Octets) -> AttributeRef:
    ref = AttributeRef(*_target(cursor))
    if cursor.flag():
        raise ProtocolError("selective access is not supported")
    return ref


def _get_request(invoke: int, cursor: Octets) -> GetRequest:
    return GetRequest(invoke, _attribute(cursor))


def _get_next(invoke: int, cursor: Octets) -> GetNext:
    return GetNext(invoke, cursor.unsigned(4))


def _set_request(invoke: int, cursor: Octets) -> SetRequest:
    return SetRequest(invoke, _attribute(cursor), axdr.decode_from(cursor))


def _action_request(invoke: int, cursor: Octets) -> ActionRequest:
    ref = MethodRef(*_target(cursor))
    return ActionRequest(invoke, ref, axdr.decode_from(cursor) if cursor.flag() else None)


def _data_or_error(cursor: Octets) -> tuple[int, Data | None]:
    if not cursor.flag():
        return SUCCESS, axdr.decode_from(cursor)
    return _nonzero(cursor), None


def _nonzero(cursor: Octets) -> int:
    error = cursor.octet()
    if error == SUCCESS:
        raise ProtocolError("success was answered without the value")
    return error


def _get_result(invoke: int, cursor: Octets) -> GetResult:
    return GetResult(invoke, *_data_or_error(cursor))


def _get_block(invoke: int, cursor: Octets) -> GetBlock:
    last, number = cursor.flag(), cursor.unsigned(4)
    if cursor.flag():
        return GetBlock(invoke, last, number, _nonzero(cursor))
    return GetBlock(invoke, last, number, SUCCESS, cursor.counted())


def _set_result(invoke: int, cursor: Octets) -> SetResult:
    return SetResult(invoke, cursor.octet())


def _action_result(invoke: int, cursor: Octets) -> ActionResult:
    error = cursor.octet()
    if not cursor.flag():
        return ActionResult(invoke, error)
    data_error, data = _data_or_error(cursor)
    return ActionResult(invoke, error, data, data_error)


_REQUESTS: Mapping[tuple[int, int], Callable[[int, Octets], Request]] = {
    (Tag.GET_REQUEST, NORMAL): _get_request,
    (Tag.GET_REQUEST, NEXT_OR_BLOCK): _get_next,
    (Tag.SET_REQUEST, NORMAL): _set_request,
    (Tag.ACTION_REQUEST, NORMAL): _action_request,
}
_RESPONSES: Mapping[tuple[int, int], Callable[[int, Octets], Response]] = {
    (Tag.GET_RESPONSE, NORMAL): _get_result,
    (Tag.GET_RESPONSE, NEXT_OR_BLOCK): _get_block,
    (Tag.SET_RESPONSE, NORMAL): _set_result,
    (Tag.ACTION_RESPONSE, NORMAL): _action_result,
}
