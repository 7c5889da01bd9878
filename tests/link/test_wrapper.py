from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.errors import ProtocolError
from hsmkm.link.wrapper import Decoder, Frame

PORTS = st.integers(0, 0xFFFF)
FRAMES = st.builds(Frame, PORTS, PORTS, st.binary(min_size=1, max_size=300))


def test_a_frame_is_that_of_the_standard() -> None:
    frame = Frame(16, 1, bytes.fromhex("6203800100"))
    assert frame.encode() == bytes.fromhex("0001001000010005") + bytes.fromhex("6203800100")


@given(st.lists(FRAMES, max_size=4), st.integers(1, 50))
def test_frames_are_found_however_the_octets_come(frames: list[Frame], size: int) -> None:
    stream = b"".join(frame.encode() for frame in frames)
    decoder = Decoder()
    found = [frame for at in range(0, len(stream), size) for frame in decoder.feed(stream[at : at + size])]
    assert found == frames
    assert decoder.waiting == 0


@pytest.mark.parametrize("header", ["0002001000010005", "0001001000010000", "0001001000010401"])
def test_wrong_versions_and_lengths_are_refused_from_the_header_alone(header: str) -> None:
    with pytest.raises(ProtocolError):
        Decoder(longest_apdu=1024).feed(bytes.fromhex(header))


@pytest.mark.parametrize("size", [0, 65_536])
def test_an_apdu_that_no_frame_can_carry_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError):
        Frame(1, 1, bytes(size)).encode()


@given(st.binary(max_size=200))
def test_hostile_octets_raise_nothing_but_protocol_errors(octets: bytes) -> None:
    try:
        Decoder().feed(octets)
    except ProtocolError:
        return
