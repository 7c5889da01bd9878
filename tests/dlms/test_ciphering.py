from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import ciphering, hls
from hsmkm.dlms.ciphering import AUTHENTICATION, Ciphered, GloTag
from hsmkm.dlms.types import SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError, ProtocolError, RefusedError
from hsmkm.simulator.keys import SoftwareKeys

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "dlms.json").read_text(encoding="utf-8")
)
KEYS = SoftwareKeys(
    bytes.fromhex("000102030405060708090A0B0C0D0E0F"), bytes.fromhex("D0D1D2D3D4D5D6D7D8D9DADBDCDDDEDF")
)
METER = SystemTitle.parse("4D4D4D0000BC614E")
CLIENT = SystemTitle.parse("4D4D4D0000000001")
COUNTER = 0x01234567
GET_CLOCK = bytes.fromhex("C0010000080000010000FF0200")
PROTECTED = bytes.fromhex("C81E3001234567411312FF935A47566827C467BC7D825C3BE4A77C3FCC056B6B")


def complete(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**entries[0], **entry} for entry in entries]


@pytest.mark.parametrize("vector", complete(VECTORS["gcm_suite0"]), ids=lambda vector: vector["name"])
def test_published_apdus_are_made_octet_by_octet(vector: dict[str, Any]) -> None:
    keys = SoftwareKeys(bytes.fromhex(vector["key"]), bytes.fromhex(vector["ak"]))
    plain, control = bytes.fromhex(vector["pt"]), int(vector["sc"], 16)
    protected = ciphering.protect(plain, keys, control, SystemTitle.parse(vector["st"]), int(vector["ic"], 16))
    assert protected.hex().upper() == vector["apdu"]


@pytest.mark.parametrize(
    "vector",
    [entry for entry in complete(VECTORS["gcm_suite0"]) if int(entry["sc"], 16) & AUTHENTICATION],
    ids=lambda vector: vector["name"],
)
def test_published_apdus_with_a_tag_are_opened(vector: dict[str, Any]) -> None:
    ciphered = ciphering.parse(bytes.fromhex(vector["apdu"]))
    assert ciphered.counter == COUNTER
    assert ciphering.unprotect(ciphered, KEYS, METER).hex().upper() == vector["pt"]


@pytest.mark.parametrize("number", [0, 1])
def test_the_same_holds_for_suites_1_and_2(number: int) -> None:
    vector = complete(VECTORS["gcm_suite1_2"])[number]
    first = VECTORS["gcm_suite0"][0]
    keys = SoftwareKeys(bytes.fromhex(vector.get("key", first["key"])), bytes.fromhex(vector.get("ak", first["ak"])))
    control = ciphering.security_control(SecuritySuite(vector["suite"]))
    assert ciphering.protect(GET_CLOCK, keys, control, METER, COUNTER) == bytes.fromhex(vector["apdu"])


@pytest.mark.parametrize("octet", range(2, len(PROTECTED)))
def test_any_flipped_octet_is_found(octet: int) -> None:
    tampered = bytearray(PROTECTED)
    tampered[octet] ^= 1
    with pytest.raises((IntegrityError, ProtocolError)):
        ciphering.unprotect(ciphering.parse(bytes(tampered)), KEYS, METER)


def test_an_apdu_of_another_sender_is_refused() -> None:
    with pytest.raises(IntegrityError):
        ciphering.unprotect(ciphering.parse(PROTECTED), KEYS, CLIENT)


def test_an_apdu_without_a_tag_is_refused() -> None:
    encrypted_only = bytes.fromhex("C8122001234567411312FF935A47566827C467BC")
    with pytest.raises(IntegrityError, match="no authentication tag"):
        ciphering.unprotect(ciphering.parse(encrypted_only), KEYS, METER)


def test_the_outer_tag_must_name_what_is_inside() -> None:
    inside = ciphering.parse(PROTECTED)
    relabelled = Ciphered(GloTag.SET_REQUEST, inside.security_control, inside.counter, inside.payload)
    with pytest.raises(IntegrityError, match="not the service"):
        ciphering.unprotect(relabelled, KEYS, METER)


def test_a_counter_past_its_end_makes_no_iv() -> None:
    with pytest.raises(RefusedError, match="used up"):
        ciphering.initialisation_vector(METER, 1 << 32)


@given(st.binary(max_size=80))
def test_hostile_octets_raise_nothing_but_protocol_and_integrity_errors(octets: bytes) -> None:
    for start in (b"", b"\xcc", b"\xcc\x20\x30"):
        try:
            ciphering.unprotect(ciphering.parse(start + octets), KEYS, METER)
        except (ProtocolError, IntegrityError):
            continue
        pytest.fail("octets without a key's tag were accepted")


HLS = VECTORS["hls"][0]
CTOS, STOC = bytes.fromhex(HLS["ctos"]), bytes.fromhex(HLS["stoc"])


def test_published_hls_5_tokens_are_made_and_accepted() -> None:
    client = hls.token(KEYS, SecuritySuite.SUITE_0, CLIENT, int(HLS["ic_c"], 16), STOC)
    server = hls.token(KEYS, SecuritySuite.SUITE_0, METER, int(HLS["ic_s"], 16), CTOS)
    assert (client.hex().upper(), server.hex().upper()) == (HLS["f_stoc"], HLS["f_ctos"])
    assert hls.verify(KEYS, SecuritySuite.SUITE_0, METER, CTOS, server) == int(HLS["ic_s"], 16)


def test_the_token_of_suite_1_differs_in_its_security_control() -> None:
    token = hls.token(KEYS, SecuritySuite.SUITE_1, CLIENT, 1, STOC)
    assert token.hex().upper() == VECTORS["hls"][1]["f_stoc"]


@pytest.mark.parametrize("octet", range(hls.TOKEN_OCTETS))
def test_a_token_with_a_flipped_octet_is_refused(octet: int) -> None:
    token = bytearray(bytes.fromhex(HLS["f_ctos"]))
    token[octet] ^= 1
    with pytest.raises(IntegrityError):
        hls.verify(KEYS, SecuritySuite.SUITE_0, METER, CTOS, bytes(token))


def test_a_token_for_another_challenge_or_suite_or_of_another_length_is_refused() -> None:
    token = bytes.fromhex(HLS["f_ctos"])
    for suite, challenge, answer in (
        (SecuritySuite.SUITE_0, STOC, token),
        (SecuritySuite.SUITE_1, CTOS, token),
        (SecuritySuite.SUITE_0, CTOS, token[:-1]),
        (SecuritySuite.SUITE_0, CTOS, b""),
    ):
        with pytest.raises(IntegrityError):
            hls.verify(KEYS, suite, METER, challenge, answer)
