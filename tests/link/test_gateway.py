from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.errors import ProtocolError
from hsmkm.link import gateway
from hsmkm.link.gateway import Direction, GatewayFrame

TITLE = bytes.fromhex("4D4D4D0000BC614E")
APDU = bytes.fromhex("C001C100080000010000FF0200")


def test_a_request_is_E6_network_length_address_apdu() -> None:  # noqa: N802 - as the standard writes it
    frame = GatewayFrame(Direction.REQUEST, 0, TITLE, APDU)

    assert frame.encode().hex() == "e600084d4d4d0000bc614e" + APDU.hex()


def test_an_answer_repeats_network_and_address_under_E7() -> None:  # noqa: N802 - as the standard writes it
    request = gateway.parse(bytes.fromhex("E605084D4D4D0000BC614E0102"))

    assert request.answer(b"\x0e").encode().hex() == "e705084d4d4d0000bc614e0e"


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        ("", "at least 3"),
        ("E600", "at least 3"),
        ("C001C100", "neither E6"),
        ("E60000C001", "1 to 32 octets, not 0"),
        ("E60021" + "00" * 40, "1 to 32 octets, not 33"),
        ("E600084D4D4D", "cut off after 3"),
        ("E600084D4D4D0000BC614E", "without an APDU"),
    ],
)
def test_a_malformed_prefix_is_refused(octets: str, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        gateway.parse(bytes.fromhex(octets))


@given(st.sampled_from(Direction), st.integers(0, 255), st.binary(min_size=1, max_size=32), st.binary(min_size=1))
def test_what_is_encoded_is_parsed(direction: Direction, network: int, address: bytes, apdu: bytes) -> None:
    frame = GatewayFrame(direction, network, address, apdu)

    assert gateway.parse(frame.encode()) == frame


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: b"\xe6\x00" + tail))
def test_any_octets_are_a_frame_that_encodes_to_them_or_refused(octets: bytes) -> None:
    try:
        frame = gateway.parse(octets)
    except ProtocolError:
        return
    assert frame.encode() == octets


def test_an_apdu_does_not_show_in_logs() -> None:
    assert "c001" not in repr(GatewayFrame(Direction.REQUEST, 0, TITLE, APDU)).lower()
