from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import agreement, axdr
from hsmkm.dlms.agreement import AlgorithmIds, PublicShare
from hsmkm.dlms.types import KeyId, SecuritySuite, SystemTitle
from hsmkm.errors import InputError, IntegrityError, ProtocolError, RefusedError
from hsmkm.simulator.key_pairs import (
    SoftwareSigner,
    SoftwareVerifier,
    derive,
    derive_from,
    generate,
    point_of,
    public_of,
)

SUITE_1, SUITE_2 = SecuritySuite.SUITE_1, SecuritySuite.SUITE_2
GREEN, GBCS = AlgorithmIds(), AlgorithmIds(agreement.GBCS_PREFIX)


def private(digits: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int(digits, 16), ec.SECP256R1())


@pytest.fixture
def ephemeral(vectors: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = vectors["key_agreement_ephemeral_unified"][0]
    return found


@pytest.fixture
def one_pass(vectors: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = vectors["key_agreement_one_pass"][0]
    return found


def test_the_check_value_of_the_dlms_kdf() -> None:
    client, server = SystemTitle.parse("4D4D4D0000000001"), SystemTitle.parse("4D4D4D0000BC614E")
    info = agreement.ephemeral_info(GREEN.of(SUITE_1, KeyId.GUEK), client, server)
    assert derive_from(SUITE_1, bytes(range(32)), info).hex() == "40578b0a78fac267414ba0bc0a47c00a"


@pytest.mark.parametrize(
    ("algorithms", "name"), [(GREEN, "guek_alg_60857405080300"), (GBCS, "guek_alg_60857406080300")]
)
def test_published_keys_of_the_ephemeral_unified_model(
    ephemeral: dict[str, str], algorithms: AlgorithmIds, name: str
) -> None:
    client, server = SystemTitle.parse(ephemeral["st_client"]), SystemTitle.parse(ephemeral["st_server"])
    info = agreement.ephemeral_info(algorithms.of(SUITE_1, KeyId.GUEK), client, server)
    peer = public_of(SUITE_1, bytes.fromhex(ephemeral["client_epk"]))
    key = derive(SUITE_1, private(ephemeral["server_esk"]), peer, info)
    assert key.hex().upper() == ephemeral[name]


def test_a_published_share_is_read_and_its_signature_fits(ephemeral: dict[str, str]) -> None:
    octets = bytes.fromhex(ephemeral["client_epk"] + ephemeral["client_sig_over_00_epk"])
    wire = bytes.fromhex("01010202160009818 0".replace(" ", "")) + octets
    (share,) = agreement.decode_key_agreement(SUITE_1, axdr.decode(wire))
    verifier = SoftwareVerifier(public_of(SUITE_1, bytes.fromhex(ephemeral["client_sign_q"])))
    share.check(SUITE_1, verifier)
    assert share.key_id is KeyId.GUEK
    assert axdr.encode(agreement.encode_key_agreement([share])) == wire
    with pytest.raises(IntegrityError):
        PublicShare(KeyId.GBEK, share.point, share.signature).check(SUITE_1, verifier)


@pytest.mark.parametrize(("algorithms", "name"), [(GREEN, "ek_alg_05"), (GBCS, "ek_alg_06")])
def test_published_keys_of_one_pass_diffie_hellman(
    one_pass: dict[str, str], algorithms: AlgorithmIds, name: str
) -> None:
    originator, recipient = SystemTitle.parse(one_pass["partyU"]), SystemTitle.parse(one_pass["partyV"])
    info = agreement.one_pass_info(algorithms.of(SUITE_1), originator, recipient)
    peer = public_of(SUITE_1, bytes.fromhex(one_pass["client_epk"]))
    assert derive(SUITE_1, private(one_pass["server_ka_d"]), peer, info).hex().upper() == one_pass[name]


def test_the_one_pass_signature_covers_the_point_only(one_pass: dict[str, str], ephemeral: dict[str, str]) -> None:
    verifier = SoftwareVerifier(public_of(SUITE_1, bytes.fromhex(ephemeral["client_sign_q"])))
    point, signature = bytes.fromhex(one_pass["client_epk"]), bytes.fromhex(one_pass["client_sig_over_epk_only"])
    verifier.verify(point, signature)
    with pytest.raises(IntegrityError):
        verifier.verify(b"\0" + point, signature)


def test_the_x963_order_gives_another_key(ephemeral: dict[str, str]) -> None:
    client, server = SystemTitle.parse(ephemeral["st_client"]), SystemTitle.parse(ephemeral["st_server"])
    info = agreement.ephemeral_info(GREEN.of(SUITE_1), client, server)
    shared = bytes.fromhex(ephemeral["z"])
    right, x963 = (
        hashlib.sha256(data).digest()[:16] for data in (b"\0\0\0\1" + shared + info, shared + b"\0\0\0\1" + info)
    )
    assert right == derive_from(SUITE_1, shared, info) == bytes.fromhex(ephemeral["guek_alg_60857405080300"])
    assert x963 != right


def test_suite_2_takes_32_octets_of_sha_384() -> None:
    info = GREEN.of(SUITE_2)
    want = hashlib.sha384(b"\0\0\0\1" + bytes(48) + info).digest()[:32]
    assert derive_from(SUITE_2, bytes(48), info) == want


@pytest.mark.parametrize(
    ("suite", "key_id", "wrap", "last"),
    [
        (SUITE_1, KeyId.GUEK, True, 0),
        (SUITE_2, KeyId.GAK, True, 1),
        (SUITE_1, KeyId.MASTER, True, 2),
        (SUITE_2, KeyId.MASTER, True, 3),
        (SUITE_1, KeyId.MASTER, False, 0),
        (SUITE_2, KeyId.MASTER, False, 1),
        (SUITE_2, None, True, 1),
    ],
)
def test_the_last_octet_of_the_algorithm_follows_key_and_suite(
    suite: SecuritySuite, key_id: KeyId | None, *, wrap: bool, last: int
) -> None:
    assert AlgorithmIds(wrap_for_master=wrap).of(suite, key_id) == agreement.GREEN_BOOK_PREFIX + bytes([last])


def test_the_other_algorithm_can_be_tried() -> None:
    assert GREEN.other() == GBCS
    assert GBCS.other() == GREEN
    with pytest.raises(InputError, match="6 octets"):
        AlgorithmIds(b"\x60")
    with pytest.raises(RefusedError):
        GREEN.of(SecuritySuite.SUITE_0)


def test_the_static_model_keeps_the_length_of_the_transaction() -> None:
    client, server = SystemTitle.parse("4D4D4D0000000001"), SystemTitle.parse("4D4D4D0000BC614E")
    info = agreement.static_info(GREEN.of(SUITE_1), client, bytes(8), server)
    assert info == GREEN.of(SUITE_1) + client.octets + b"\x08" + bytes(8) + server.octets


@pytest.mark.parametrize("suite", [SUITE_1, SUITE_2])
def test_shares_go_round(suite: SecuritySuite) -> None:
    signing = generate(suite)
    point = point_of(generate(suite).public_key())
    share = PublicShare.sign(suite, KeyId.GAK, point, SoftwareSigner(signing))
    data = axdr.decode(axdr.encode(agreement.encode_key_agreement([share])))
    (read,) = agreement.decode_key_agreement(suite, data)
    assert read == share
    read.check(suite, SoftwareVerifier(signing.public_key()))
    with pytest.raises(IntegrityError):
        read.check(suite, SoftwareVerifier(generate(suite).public_key()))


def test_a_share_off_the_curve_or_signed_by_another_suite_is_not_made_or_believed() -> None:
    signer = SoftwareSigner(generate(SUITE_1))
    with pytest.raises(IntegrityError, match="curve"):
        PublicShare.sign(SUITE_1, KeyId.GUEK, b"\1" * 64, signer)
    with pytest.raises(RefusedError, match="suite 2"):
        PublicShare.sign(SUITE_2, KeyId.GUEK, point_of(generate(SUITE_2).public_key()), signer)
    verifier = SoftwareVerifier(generate(SUITE_1).public_key())
    with pytest.raises(IntegrityError, match="curve"):
        PublicShare(KeyId.GUEK, b"\1" * 64, b"\1" * 64).check(SUITE_1, verifier)
    point = point_of(generate(SUITE_1).public_key())
    with pytest.raises(IntegrityError, match="out of range"):
        PublicShare(KeyId.GUEK, point, bytes(64)).check(SUITE_1, verifier)


@pytest.mark.parametrize("text", ["0100", "0101020016000900", "01010202160409818" + "0" + "00" * 128, "1600"])
def test_malformed_shares_are_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        agreement.decode_key_agreement(SUITE_1, axdr.decode(bytes.fromhex(text)))


def test_a_key_is_agreed_once_in_a_call() -> None:
    share = PublicShare(KeyId.GUEK, bytes(64), bytes(64))
    with pytest.raises(ProtocolError, match="once"):
        agreement.decode_key_agreement(SUITE_1, agreement.encode_key_agreement([share, share]))


@given(st.binary(max_size=300))
def test_hostile_octets_raise_protocol_errors_only(octets: bytes) -> None:
    for start in (b"", b"\x01\x01\x02\x02\x16"):
        try:
            agreement.decode_key_agreement(SUITE_1, axdr.decode(start + octets))
        except ProtocolError:
            continue
