from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import general
from hsmkm.dlms.ciphering import Content
from hsmkm.dlms.general import (
    AgreedKey,
    GeneralApdu,
    GeneralCiphering,
    GeneralKeyed,
    GeneralSigning,
    Header,
    IdentifiedKey,
    KeyInfo,
    KeyParameters,
    WrappedKey,
)
from hsmkm.dlms.types import SystemTitle
from hsmkm.errors import ProtocolError

CLIENT, METER = SystemTitle.parse("4D4D4D0000000001"), SystemTitle.parse("4D4D4D0000BC614E")
HEADER = Header(bytes.fromhex("0123456789012345"), CLIENT, METER)
CONTENT = Content(0x31, 1, b"ciphertext and tag")
HEAD = "080123456789012345" + "084D4D4D0000000001" + "084D4D4D0000BC614E" + "0000"


def test_the_header_keeps_the_lengths_of_its_fields() -> None:
    assert HEADER.encode().hex().upper() == HEAD
    assert Header(b"", CLIENT, None, b"d", b"oi").encode().hex().upper() == "00084D4D4D0000000001000164026F69"


@pytest.mark.parametrize(
    ("info", "wire"),
    [
        (None, "00"),
        (IdentifiedKey(0), "010000"),
        (IdentifiedKey(1), "010001"),
        (WrappedKey(b"w" * 24), "01010018" + b"w".hex() * 24),
        (AgreedKey(KeyParameters.ONE_PASS, b"q" * 128), "0102010181 80".replace(" ", "") + b"q".hex() * 128),
        (AgreedKey(KeyParameters.STATIC), "0102010200"),
    ],
)
def test_every_kind_of_key_info(info: KeyInfo | None, wire: str) -> None:
    apdu = GeneralCiphering(HEADER, info, CONTENT)
    encoded = apdu.encode()
    assert encoded.hex().upper().startswith("DD" + HEAD + wire.upper())
    assert general.parse(encoded) == apdu


@pytest.mark.parametrize(
    ("apdu", "start"),
    [
        (GeneralKeyed(dedicated=False, title=CLIENT, content=CONTENT), "DB08" + str(CLIENT)),
        (GeneralKeyed(dedicated=True, title=CLIENT, content=CONTENT), "DC08" + str(CLIENT)),
        (GeneralSigning(HEADER, b"content", b"s" * 64), "DF" + HEAD + "07" + b"content".hex() + "40"),
    ],
)
def test_the_other_general_apdus(apdu: GeneralApdu, start: str) -> None:
    assert apdu.encode().hex().upper().startswith(start.upper())
    assert general.parse(apdu.encode()) == apdu
    for cut in range(1, len(apdu.encode())):
        with pytest.raises(ProtocolError):
            general.parse(apdu.encode()[:cut])


def test_what_is_signed_has_the_content_without_its_length() -> None:
    assert general.signed_octets(HEADER, b"content") == bytes.fromhex(HEAD) + b"content"


def test_an_answer_goes_the_other_way_in_the_same_transaction() -> None:
    assert HEADER.answered_by(METER) == Header(HEADER.transaction, METER, CLIENT)
    assert HEADER.transaction_number == 0x0123456789012345
    for transaction in (b"", bytes(9)):
        with pytest.raises(ProtocolError):
            _ = Header(transaction, CLIENT, METER).transaction_number


@pytest.mark.parametrize("wire", ["03" + "0100", "0202010100", "02010300", "020000", "FF"])
def test_key_info_of_no_known_kind_is_refused(wire: str) -> None:
    with pytest.raises(ProtocolError):
        general.parse(bytes.fromhex("DD" + HEAD + "01" + wire) + b"\x05" + bytes(5))


@pytest.mark.parametrize("octet", [2, 0x41, 0xFF])
def test_the_presence_of_a_key_info_has_one_form(octet: int) -> None:
    apdu = GeneralCiphering(HEADER, IdentifiedKey(0), CONTENT).encode()
    place = 1 + len(HEADER.encode())
    assert apdu[place] == 1
    with pytest.raises(ProtocolError, match="presence"):
        general.parse(apdu[:place] + bytes([octet]) + apdu[place + 1 :])


def test_a_field_of_more_than_255_octets_is_refused() -> None:
    with pytest.raises(ProtocolError, match="too long"):
        general.parse(b"\xdd\x82\x01\x00" + bytes(256) + bytes(100))


@given(st.binary(max_size=200))
def test_hostile_octets_raise_protocol_errors_only(octets: bytes) -> None:
    heads = (b"", b"\xdb\x08" + CLIENT.octets, b"\xdd" + bytes.fromhex(HEAD), b"\xdf" + bytes.fromhex(HEAD))
    for start in (*heads, b"\xdd", b"\xdf", b"\xdc"):
        try:
            parsed = general.parse(start + octets)
        except ProtocolError:
            continue
        assert general.parse(parsed.encode()) == parsed
