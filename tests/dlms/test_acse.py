from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import acse
from hsmkm.dlms.acse import AssociationRequest, AssociationResponse, Context
from hsmkm.errors import ProtocolError

# Example of the Green Book, as in the tests of dlms-cosem: public client, 0x007E1F proposed, PDU of 1200 octets.
PUBLIC_AARQ = bytes.fromhex("601DA109060760857405080101BE10040E01000000065F1F0400007E1F04B0")
PUBLIC_AARE = bytes.fromhex("6129A109060760857405080101A203020100A305A103020100BE10040E0800065F1F040000501F01F40007")
HLS_AARE = AssociationResponse(
    context=Context.LOGICAL_NAMES_CIPHERED,
    result=0,
    diagnostic=14,
    responding_title=bytes.fromhex("4D4D4D0000BC614E"),
    mechanism=5,
    challenge=b"challenge of the meter, of 32 oct",
    user_information=bytes(200),
)


def test_the_public_aarq_is_that_of_the_green_book() -> None:
    initiate = bytes.fromhex("01000000065F1F0400007E1F04B0")
    request = AssociationRequest(context=Context.LOGICAL_NAMES, initiate=initiate)
    assert request.encode() == PUBLIC_AARQ
    assert acse.parse_request(PUBLIC_AARQ) == request


def test_the_public_aare_is_read() -> None:
    response = acse.parse_response(PUBLIC_AARE)
    assert (response.result, response.diagnostic, response.context) == (0, 0, Context.LOGICAL_NAMES)
    assert response.user_information == bytes.fromhex("0800065F1F040000501F01F40007")
    assert response.encode() == PUBLIC_AARE


def test_a_ciphered_request_with_its_challenge_reads_back() -> None:
    request = AssociationRequest(
        context=Context.LOGICAL_NAMES_CIPHERED,
        initiate=bytes(47),
        calling_title=bytes.fromhex("4D4D4D0000000001"),
        mechanism=5,
        challenge=bytes(64),
    )
    assert acse.parse_request(request.encode()) == request


def test_lengths_are_read_in_short_and_long_form() -> None:
    assert acse.parse_response(HLS_AARE.encode()) == HLS_AARE
    long_form = PUBLIC_AARE.replace(bytes.fromhex("A203020100"), bytes.fromhex("A2810502820001" + "00"))
    with pytest.raises(ProtocolError):
        acse.parse_response(long_form)
    body = PUBLIC_AARE[2:].replace(bytes.fromhex("A203020100"), bytes.fromhex("A281050282000100"))
    assert acse.parse_response(bytes([0x61, 0x82, 0, len(body)]) + body).result == 0


def test_unknown_fields_are_skipped() -> None:
    extra = bytes.fromhex("A503020101") + bytes.fromhex("BF8A010100")
    body = PUBLIC_AARE[2:] + extra
    assert acse.parse_response(bytes([0x61, len(body)]) + body).result == 0


@pytest.mark.parametrize(
    "apdu",
    [
        b"",
        PUBLIC_AARE[:-1],
        PUBLIC_AARE + b"\0",
        bytes([0x61, 0x80]) + PUBLIC_AARE[2:] + b"\0\0",
        bytes([0x60]) + PUBLIC_AARE[1:],
        bytes([0x61, len(PUBLIC_AARE) + 3]) + PUBLIC_AARE[2:] + bytes.fromhex("A203020100"),
        bytes([0x61, len(PUBLIC_AARE) - 7]) + PUBLIC_AARE[2:].replace(bytes.fromhex("A203020100"), b""),
        PUBLIC_AARE.replace(bytes.fromhex("60857405080101"), bytes.fromhex("60857405080201")),
        PUBLIC_AARE.replace(bytes.fromhex("A305A1"), bytes.fromhex("A305A3")),
    ],
)
def test_malformed_answers_are_refused(apdu: bytes) -> None:
    with pytest.raises(ProtocolError):
        acse.parse_response(apdu)


def test_a_rejection_says_why() -> None:
    rejected = AssociationResponse(context=1, result=1, diagnostic=13)
    assert acse.parse_response(rejected.encode()).reason == "authentication failure"
    provider = AssociationResponse(context=1, result=2, source=2, diagnostic=1)
    assert "service provider" in acse.parse_response(provider.encode()).reason


def test_release_is_reason_normal() -> None:
    assert acse.release_request() == bytes.fromhex("6203800100")
    acse.parse_release_response(bytes.fromhex("6303800100"))
    acse.parse_release_response(bytes.fromhex("6300"))
    with pytest.raises(ProtocolError):
        acse.parse_release_response(bytes.fromhex("6203800100"))


@given(st.binary(max_size=120), st.integers(0, 60))
def test_hostile_octets_raise_nothing_but_protocol_errors(octets: bytes, at: int) -> None:
    spoiled = PUBLIC_AARE[:at] + octets + PUBLIC_AARE[at + len(octets) :]
    for apdu in (octets, spoiled, bytes([0x61, 0x81, len(octets)]) + octets):
        for parse in (acse.parse_request, acse.parse_response):
            try:
                parse(apdu)
            except ProtocolError:
                continue
