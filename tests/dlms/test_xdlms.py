from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import axdr, xdlms
from hsmkm.dlms.types import AttributeRef, LogicalName, MethodRef
from hsmkm.dlms.xdlms import (
    ActionRequest,
    ActionResult,
    ConfirmedServiceError,
    ExceptionResponse,
    GetBlock,
    GetNext,
    GetRequest,
    GetResult,
    InitiateRequest,
    InitiateResponse,
    SetRequest,
    SetResult,
)
from hsmkm.errors import ProtocolError

CLOCK = AttributeRef(8, LogicalName.parse("0.0.1.0.0.255"), 2)
METHOD = MethodRef(64, LogicalName.parse("0.0.43.0.0.255"), 2)


def test_the_initiate_request_of_the_standard_is_read_and_hides_its_key() -> None:
    apdu = bytes.fromhex("01011000112233445566778899AABBCCDDEEFF0000065F1F0400007E1F04B0")
    request = xdlms.parse_initiate_request(apdu)
    assert request == InitiateRequest(0x007E1F, 1200, bytes.fromhex("00112233445566778899AABBCCDDEEFF"))
    assert request.encode() == apdu
    assert "dedicated" not in repr(request)


def test_the_initiate_response_of_the_standard_is_read() -> None:
    apdu = bytes.fromhex("0800065F1F040000501F01F40007")
    assert xdlms.parse_initiate_response(apdu) == InitiateResponse(0x00501F, 500)
    assert InitiateResponse(0x00501F, 500).encode() == apdu


def test_optional_fields_of_initiate_may_be_present() -> None:
    assert xdlms.parse_initiate_response(bytes.fromhex("080100065F1F040000501F01F40007")).max_pdu == 500
    assert xdlms.parse_initiate_request(bytes.fromhex("010001FF0105065F1F0400007E1F04B0")).max_pdu == 1200


@pytest.mark.parametrize(
    ("octets", "request_"),
    [
        ("C001C1" + "0008" + "0000010000FF" + "02" + "00", GetRequest(1, CLOCK)),
        ("C002C100000002", GetNext(1, 2)),
        ("C101C2" + "0008" + "0000010000FF" + "02" + "00" + "1105", SetRequest(2, CLOCK, axdr.decode(b"\x11\x05"))),
        ("C301C1" + "0040" + "00002B0000FF" + "02" + "00", ActionRequest(1, METHOD)),
        ("C301C1" + "0040" + "00002B0000FF" + "02" + "01" + "1600", ActionRequest(1, METHOD, axdr.enum(0))),
    ],
)
def test_requests_are_those_of_the_standard(octets: str, request_: xdlms.Request) -> None:
    assert request_.encode() == bytes.fromhex(octets)
    assert xdlms.parse_request(bytes.fromhex(octets)) == request_


@pytest.mark.parametrize(
    ("octets", "response"),
    [
        ("C401C1001100", GetResult(1, 0, axdr.decode(b"\x11\x00"))),
        ("C401C10103", GetResult(1, 3)),
        ("C402C100000000010002AABB", GetBlock(1, last=False, number=1, error=0, raw=b"\xaa\xbb")),
        ("C402C10100000002010E", GetBlock(1, last=True, number=2, error=14)),
        ("C501C203", SetResult(2, 3)),
        ("C701C10000", ActionResult(1, 0)),
        ("C701C1FA00", ActionResult(1, 250)),
        ("C701C100010009020102", ActionResult(1, 0, axdr.octet_string(b"\x01\x02"))),
        ("C701C100010103", ActionResult(1, 0, None, 3)),
    ],
)
def test_responses_are_those_of_the_standard(octets: str, response: xdlms.Response) -> None:
    assert xdlms.parse_response(bytes.fromhex(octets)) == response
    assert response.encode() == bytes.fromhex(octets)


@pytest.mark.parametrize(
    ("octets", "error"),
    [
        ("D80105", ExceptionResponse(1, 5)),
        ("D8010600000007", ExceptionResponse(1, 6, 7)),
        ("D80106", ExceptionResponse(1, 6)),
        ("0E010602", ConfirmedServiceError(1, 6, 2)),
    ],
)
def test_errors_in_clear(octets: str, error: xdlms.ErrorResponse) -> None:
    assert xdlms.parse_error(bytes.fromhex(octets)) == error
    assert error.encode() == bytes.fromhex(octets)


def test_an_exception_says_why() -> None:
    assert ExceptionResponse(1, 6).reason == "invocation counter error"
    assert ExceptionResponse(1, 99).reason == "service error 99"


@pytest.mark.parametrize(
    "octets",
    [
        "C401C1",
        "C401C10011",
        "C401C100110000",
        "C401C10100",
        "C403C100",
        "C702C10000",
        "0E01",
    ],
)
def test_malformed_answers_are_refused(octets: str) -> None:
    apdu = bytes.fromhex(octets)
    with pytest.raises(ProtocolError):
        xdlms.parse_error(apdu) or xdlms.parse_response(apdu)


@given(st.binary(max_size=100))
def test_hostile_octets_raise_nothing_but_protocol_errors(octets: bytes) -> None:
    parsers = (
        xdlms.parse_request,
        xdlms.parse_response,
        xdlms.parse_error,
        xdlms.parse_initiate_request,
        xdlms.parse_initiate_response,
    )
    starts = ("", "C001C1", "C101C1", "C301C1", "C401C1", "C402C1", "C701C1", "D8", "0E", "01", "08", "080006")
    for parse in parsers:
        for start in starts:
            try:
                parse(bytes.fromhex(start) + octets)
            except ProtocolError:
                continue
