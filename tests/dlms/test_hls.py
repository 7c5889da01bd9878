from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms.hls import DIGESTS, DigestProof, GmacProof, Handshake, SignatureProof
from hsmkm.dlms.types import Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.simulator.key_pairs import SoftwareSigner, SoftwareVerifier, generate
from hsmkm.simulator.keys import SoftwareCounter, SoftwareKeys, SoftwareSecret

CLIENT, METER = SystemTitle.parse("4D4D4D0000000001"), SystemTitle.parse("4D4D4D0000BC614E")
CTOS, STOC = bytes.fromhex("4B35366956616759"), bytes.fromhex("503677524A323146")
AT_CLIENT = Handshake(CLIENT, METER, CTOS, STOC)
AT_METER = AT_CLIENT.turned()
SECRET = SoftwareSecret(b"12345678")


@pytest.mark.parametrize("mechanism", [Mechanism.HLS_MD5, Mechanism.HLS_SHA1, Mechanism.HLS_SHA256])
def test_published_answers_of_the_digest_mechanisms(vectors: dict[str, Any], mechanism: Mechanism) -> None:
    vector = next(entry for entry in vectors["hls"] if entry["mech"] == mechanism)
    proof = DigestProof(mechanism, SoftwareSecret(bytes.fromhex(vector["secret"])))
    f_stoc, f_ctos = bytes.fromhex(vector["f_stoc"]), bytes.fromhex(vector["f_ctos"])
    assert proof.answer(AT_CLIENT) == f_stoc
    assert proof.answer(AT_METER) == f_ctos
    proof.check(AT_CLIENT, f_ctos)
    proof.check(AT_METER, f_stoc)


@pytest.mark.parametrize("mechanism", list(DIGESTS))
def test_our_own_answer_sent_back_proves_nothing(mechanism: Mechanism) -> None:
    proof = DigestProof(mechanism, SECRET)
    with pytest.raises(IntegrityError):
        proof.check(AT_CLIENT, proof.answer(AT_CLIENT))


@pytest.mark.parametrize("mechanism", list(DIGESTS))
def test_another_secret_or_challenge_is_refused(mechanism: Mechanism) -> None:
    proof, answer = DigestProof(mechanism, SECRET), DigestProof(mechanism, SECRET).answer(AT_METER)
    with pytest.raises(IntegrityError):
        DigestProof(mechanism, SoftwareSecret(b"12345679")).check(AT_CLIENT, answer)
    with pytest.raises(IntegrityError):
        proof.check(replace(AT_CLIENT, own_challenge=bytes(8)), answer)


def test_the_secret_is_digested_where_it_is() -> None:
    digest = SECRET.digest(DIGESTS[Mechanism.HLS_SHA256], b"before", b"after")
    assert digest == hashlib.sha256(b"before12345678after").digest()
    assert "12345678" not in repr(SECRET)


def test_mechanism_5_answers_under_a_counter_of_its_own() -> None:
    keys, counter = SoftwareKeys(bytes(16), bytes(16)), SoftwareCounter(7)
    proof = GmacProof(keys, SecuritySuite.SUITE_1, counter)
    answer = proof.answer(AT_CLIENT)
    assert answer[:5].hex() == "1100000007"
    assert counter.value == 8
    assert proof.check(AT_METER, answer) == 7


@pytest.mark.parametrize("suite", [SecuritySuite.SUITE_1, SecuritySuite.SUITE_2])
def test_mechanism_7_signs_titles_and_challenges(suite: SecuritySuite) -> None:
    client, meter = generate(suite), generate(suite)
    at_client = SignatureProof(suite, SoftwareSigner(client), SoftwareVerifier(meter.public_key()))
    at_meter = SignatureProof(suite, SoftwareSigner(meter), SoftwareVerifier(client.public_key()))
    answer = at_client.answer(AT_CLIENT)
    assert len(answer) == suite.point_octets
    at_meter.check(AT_METER, answer)
    SoftwareVerifier(client.public_key()).verify(CLIENT.octets + METER.octets + STOC + CTOS, answer)
    at_client.check(AT_CLIENT, at_meter.answer(AT_METER))
    with pytest.raises(IntegrityError):
        at_client.check(AT_CLIENT, answer)


def test_mechanism_7_refuses_r_or_s_of_zero_and_keys_of_another_suite() -> None:
    suite = SecuritySuite.SUITE_1
    key = generate(suite)
    proof = SignatureProof(suite, SoftwareSigner(key), SoftwareVerifier(key.public_key()))
    answer = proof.answer(AT_METER)
    for forged in (bytes(32) + answer[32:], answer[:32] + bytes(32), b"\xff" * 32 + answer[32:], answer[:-1], b""):
        with pytest.raises(IntegrityError):
            proof.check(AT_CLIENT, forged)
    other = SignatureProof(suite, SoftwareSigner(generate(SecuritySuite.SUITE_2)), SoftwareVerifier(key.public_key()))
    with pytest.raises(RefusedError, match="not of suite 1"):
        other.answer(AT_CLIENT)


@given(st.binary(max_size=100))
def test_hostile_answers_raise_integrity_errors_only(answer: bytes) -> None:
    key = generate(SecuritySuite.SUITE_1)
    for proof in (
        DigestProof(Mechanism.HLS_SHA256, SECRET),
        GmacProof(SoftwareKeys(bytes(16), bytes(16)), SecuritySuite.SUITE_0, SoftwareCounter()),
        SignatureProof(SecuritySuite.SUITE_1, SoftwareSigner(key), SoftwareVerifier(key.public_key())),
    ):
        with pytest.raises(IntegrityError):
            proof.check(AT_CLIENT, answer)
