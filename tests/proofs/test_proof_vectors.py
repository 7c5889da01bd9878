"""The numbers that others published, both ways, through handles of keys in each kind of token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pkcs11 import Attribute

from hsmkm.dlms import ciphering, hls
from hsmkm.dlms.agreement import AlgorithmIds, PublicShare, ephemeral_info, one_pass_info
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError
from hsmkm.steps.credentials import CertifiedKey, TokenSecret, TokenSigningKey
from hsmkm.token import attributes, curves
from hsmkm.token.agreement import agree_dlms
from hsmkm.token.derivation import Kdf, Wanted, agree, choose_rung, derive
from hsmkm.token.keys import CipherKey, KeyHandle
from hsmkm.token.session import open_session
from hsmkm.token.template import Template, ffi
from hsmkm.token.types import CarrierRole, KeyRole, Sealed, SecretRole, Use
from hsmkm.token.vault import Vault
from tests.conftest import make_token
from tests.published import private_key, published_pair

Vectors = dict[str, list[dict[str, Any]]]
SUITE_0, SUITE_1 = SecuritySuite(0), SecuritySuite(1)
FACT = "40578b0a78fac267414ba0bc0a47c00a"
"""SHA-256(00000001 || 00 01 .. 1F || 60857405080300 || 4D4D4D0000000001 || 4D4D4D0000BC614E), 16 octets."""


@pytest.fixture(params=["softhsm2", "nss"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vault]:
    """A party's keys in a new token of each kind; on NSS no key is derived in the host."""
    if request.param == "nss":
        request.getfixturevalue("nss_installed")
    with open_session(make_token(tmp_path / "home", profile=request.param)) as session:
        opened = Vault(session)
        opened.create_keys()
        yield opened


def in_full(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries with what they leave out, which is as in the first."""
    shared = ("key", "ak", "st", "ic", "pt")
    return [{name: entries[0][name] for name in shared} | entry for entry in entries]


@contextmanager
def sealed_key(vault: Vault, role: KeyRole, value: str, use: Use) -> Iterator[KeyHandle]:
    """A key as it is used every day: imported once, sealed, and opened from its seal."""
    suite = 2 if len(value) == 64 else 0
    with vault.import_key(role, suite, bytearray.fromhex(value)) as key:
        sealed = vault.seal(key)
    with vault.open(role, sealed, suite, use) as key:
        yield key


def sealed_as(vault: Vault, value: str) -> Sealed:
    """A GUEK of this value as the token seals it: key wrap is deterministic, so equal seals are equal keys."""
    with vault.import_key(KeyRole.GUEK, 0, bytearray.fromhex(value)) as key:
        return vault.seal(key)


@contextmanager
def cipher_of(vault: Vault, key: str, ak: str) -> Iterator[CipherKey]:
    with (
        sealed_key(vault, KeyRole.GUEK, key, Use.IN_USE) as guek,
        sealed_key(vault, KeyRole.GAK, ak, Use.IN_USE) as gak,
        vault.cipher(guek, gak) as made,
    ):
        yield made


def test_every_published_number_is_known_here(vectors: Vectors) -> None:
    """A vector that is added must get its test."""
    assert {name: len(entries) for name, entries in vectors.items() if name != "note"} == {
        "gcm_suite0": 4,
        "gcm_suite1_2": 2,
        "keywrap": 1,
        "hls": 5,
        "key_agreement_ephemeral_unified": 1,
        "key_agreement_one_pass": 1,
    }
    assert {entry["sc"] for entry in in_full(vectors["gcm_suite0"])} == {"10", "20", "30"}
    assert [(entry["mech"], entry.get("suite", 0)) for entry in vectors["hls"]] == [
        (5, 0),
        (5, 1),
        (3, 0),
        (4, 0),
        (6, 0),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_published_apdu_is_made_octet_by_octet_and_opened(vault: Vault, vectors: Vectors, number: int) -> None:
    entry = in_full(vectors["gcm_suite0"])[number]
    control, counter = int(entry["sc"], 16), int(entry["ic"], 16)
    plain, apdu, title = bytes.fromhex(entry["pt"]), bytes.fromhex(entry["apdu"]), SystemTitle.parse(entry["st"])
    with cipher_of(vault, entry["key"], entry["ak"]) as key:
        assert ciphering.protect(plain, key, control, title, counter) == apdu
        taken = ciphering.parse(apdu)
        assert (taken.security_control, taken.counter) == (control, counter)
        iv = ciphering.initialisation_vector(title, counter)
        assert key.unprotect(iv, control, b"", taken.payload) == plain
        if control & ciphering.AUTHENTICATION:
            assert ciphering.unprotect(taken, key, title) == plain
            assert taken.payload.endswith(bytes.fromhex(entry.get("tag", "")))
        else:
            with pytest.raises(IntegrityError, match="no authentication tag"):
                ciphering.unprotect(taken, key, title)


def test_a_published_apdu_opens_under_no_other_key_counter_title_or_gak(vault: Vault, vectors: Vectors) -> None:
    entry = in_full(vectors["gcm_suite0"])[2]
    taken, title = ciphering.parse(bytes.fromhex(entry["apdu"])), SystemTitle.parse(entry["st"])
    other = ciphering.Ciphered(taken.tag, taken.security_control, taken.counter + 1, taken.payload)
    with cipher_of(vault, entry["key"], entry["ak"]) as key:
        for wrong in ((other, key, title), (taken, key, SystemTitle.parse("4D4D4D0000BC614F"))):
            with pytest.raises(IntegrityError):
                ciphering.unprotect(*wrong)
    for guek, gak in ((entry["ak"], entry["ak"]), (entry["key"], entry["key"])):
        with cipher_of(vault, guek, gak) as wrong_key, pytest.raises(IntegrityError):
            ciphering.unprotect(taken, wrong_key, title)


def test_the_published_key_wrap_both_ways(vault: Vault, vectors: Vectors) -> None:
    """A client never unwraps under a master key, so the way back is that of a recipient's package key."""
    (entry,) = vectors["keywrap"]
    wrapped = bytes.fromhex(entry["wrapped"])
    with (
        sealed_key(vault, KeyRole.MASTER, entry["kek"], Use.IN_USE) as master,
        sealed_key(vault, KeyRole.GUEK, entry["key"], Use.TRANSPORT) as guek,
    ):
        assert vault.wrap(master, guek) == wrapped
        sealed = vault.seal(guek)
    kek = ffi.new("unsigned char[16]", bytes.fromhex(entry["kek"]))
    unwrapping = attributes.carrier_key(Attribute.UNWRAP)
    with vault.adopt(unwrapping, kek, CarrierRole.PACKAGE) as carrier:
        with vault.unwrap(carrier, wrapped, KeyRole.GUEK, 0) as again:
            assert vault.seal(again) == sealed  # key wrap is deterministic: the same octets are the same key
        with pytest.raises(IntegrityError):
            vault.unwrap(carrier, bytes((wrapped[0] ^ 1,)) + wrapped[1:], KeyRole.GUEK, 0)


def test_the_published_hls_5_tokens_of_both_sides_are_made_and_verified(vault: Vault, vectors: Vectors) -> None:
    entry = vectors["hls"][0]
    keys = vectors["gcm_suite0"][0]
    assert entry["mech"] == 5
    with cipher_of(vault, keys["key"], keys["ak"]) as key:
        for side, challenge in (("c", "stoc"), ("s", "ctos")):
            title, counter = SystemTitle.parse(entry[f"st_{side}"]), int(entry[f"ic_{side}"], 16)
            asked, answer = bytes.fromhex(entry[challenge]), bytes.fromhex(entry[f"f_{challenge}"])
            assert hls.token(key, SUITE_0, title, counter, asked) == answer
            assert hls.verify(key, SUITE_0, title, asked, answer) == counter
            for altered in (answer[:-1] + bytes((answer[-1] ^ 1,)), answer[:4] + b"\x77" + answer[5:]):
                with pytest.raises(IntegrityError):
                    hls.verify(key, SUITE_0, title, asked, altered)
            with pytest.raises(IntegrityError):
                hls.verify(key, SUITE_0, title, asked[::-1], answer)


@pytest.mark.parametrize("number", range(2))
def test_a_published_apdu_of_suites_1_and_2_is_made_octet_by_octet_and_opened(
    vault: Vault, vectors: Vectors, number: int
) -> None:
    entry = vectors["gcm_suite0"][0] | vectors["gcm_suite1_2"][number]
    control, counter = int(entry["sc"], 16), int(entry["ic"], 16)
    plain, apdu, title = bytes.fromhex(entry["pt"]), bytes.fromhex(entry["apdu"]), SystemTitle.parse(entry["st"])
    assert control & 0xF == entry["suite"]
    with cipher_of(vault, entry["key"], entry["ak"]) as key:
        assert ciphering.protect(plain, key, control, title, counter) == apdu
        assert ciphering.unprotect(ciphering.parse(apdu), key, title) == plain
        with pytest.raises(IntegrityError):
            ciphering.unprotect(ciphering.parse(apdu[:-1] + bytes((apdu[-1] ^ 1,))), key, title)


def test_the_published_hls_5_token_of_suite_1(vault: Vault, vectors: Vectors) -> None:
    entry, keys = vectors["hls"][0] | vectors["hls"][1], vectors["gcm_suite0"][0]
    title, counter = SystemTitle.parse(entry["st_c"]), int(entry["ic_c"], 16)
    asked, answer = bytes.fromhex(entry["stoc"]), bytes.fromhex(entry["f_stoc"])
    with cipher_of(vault, keys["key"], keys["ak"]) as key:
        assert hls.token(key, SUITE_1, title, counter, asked) == answer
        assert hls.verify(key, SUITE_1, title, asked, answer) == counter
        with pytest.raises(IntegrityError, match="suite"):
            hls.verify(key, SUITE_0, title, asked, answer)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_published_answers_of_hls_3_4_and_6_are_made_in_the_token_and_checked(
    vault: Vault, vectors: Vectors, number: int
) -> None:
    entry = vectors["hls"][0] | vectors["hls"][number]
    with vault.import_key(SecretRole.HLS, 0, bytearray.fromhex(entry["secret"])) as key:
        proof = hls.DigestProof(Mechanism(entry["mech"]), TokenSecret(vault, vault.seal(key)))
    titles = SystemTitle.parse(entry["st_c"]), SystemTitle.parse(entry["st_s"])
    client = hls.Handshake(*titles, bytes.fromhex(entry["ctos"]), bytes.fromhex(entry["stoc"]))
    ours, theirs = bytes.fromhex(entry["f_stoc"]), bytes.fromhex(entry["f_ctos"])
    assert (proof.answer(client), proof.answer(client.turned())) == (ours, theirs)
    proof.check(client, theirs)
    proof.check(client.turned(), ours)
    with pytest.raises(IntegrityError):
        proof.check(client, ours)


@pytest.mark.parametrize("ids", [AlgorithmIds(), AlgorithmIds().other()])
def test_the_published_agreement_of_both_algorithm_ids_and_not_in_the_order_of_x9_63(
    vault: Vault, vectors: Vectors, ids: AlgorithmIds
) -> None:
    (entry,) = vectors["key_agreement_ephemeral_unified"]
    algorithm = ids.of(SUITE_1, KeyId.GUEK)
    info = ephemeral_info(algorithm, SystemTitle.parse(entry["st_client"]), SystemTitle.parse(entry["st_server"]))
    expected = sealed_as(vault, entry[f"guek_alg_{algorithm.hex()}"])
    theirs = bytes.fromhex(entry["client_epk"])
    with published_pair(vault, entry["server_esk"]) as own:
        assert own.point == bytes.fromhex(entry["server_epk"])
        with agree_dlms(vault, own, theirs, info, KeyRole.GUEK) as key:
            assert vault.seal(key) == expected
        wanted = Wanted(attributes.session_key(KeyRole.GUEK, Use.TRANSPORT), KeyRole.GUEK, Use.TRANSPORT, 16)
        with agree(vault, Kdf.X963, own.private(), curves.decode_raw("P-256", theirs), info, wanted) as other:
            assert vault.seal(other) != expected
            z_first = hashlib.sha256(bytes.fromhex(entry["z"]) + b"\0\0\0\1" + info).hexdigest()[:32]
            assert vault.seal(other) == sealed_as(vault, z_first)


@pytest.mark.parametrize("ids", [AlgorithmIds(), AlgorithmIds().other()])
def test_the_published_one_pass_keys_on_both_sides(vault: Vault, vectors: Vectors, ids: AlgorithmIds) -> None:
    (entry,) = vectors["key_agreement_one_pass"]
    algorithm = ids.of(SUITE_1)
    info = one_pass_info(algorithm, SystemTitle.parse(entry["partyU"]), SystemTitle.parse(entry["partyV"]))
    expected = sealed_as(vault, entry["ek_alg_05" if ids == AlgorithmIds() else "ek_alg_06"])
    if ids == AlgorithmIds():
        assert sealed_as(vault, entry["kdf32"][:32]) == expected
    private_key(vault, entry["server_ka_d"], "key-agreement")
    with (
        published_pair(vault, entry["client_esk"]) as own,
        agree_dlms(vault, own, bytes.fromhex(entry["server_ka_q"]), info, KeyRole.GUEK) as sent,
        agree_dlms(vault, "key-agreement", bytes.fromhex(entry["client_epk"]), info, KeyRole.GUEK) as received,
    ):
        assert own.point == bytes.fromhex(entry["client_epk"])
        assert vault.seal(sent) == vault.seal(received) == expected


def test_the_check_of_the_kdf(vault: Vault) -> None:
    info = ephemeral_info(
        AlgorithmIds().of(SUITE_1, KeyId.GUEK),
        SystemTitle.parse("4D4D4D0000000001"),
        SystemTitle.parse("4D4D4D0000BC614E"),
    )
    listed = attributes.shared_secret(derives=choose_rung(vault, Kdf.SP800) == "concatenate")
    z = vault.session.cryptoki.create(Template(listed | {Attribute.VALUE: bytes(range(32))}))
    wanted = Wanted(attributes.session_key(KeyRole.GUEK, Use.TRANSPORT), KeyRole.GUEK, Use.TRANSPORT, 16)
    with derive(vault, Kdf.SP800, "P-256", z, info, wanted) as key:
        assert vault.seal(key) == sealed_as(vault, FACT)
    reordered = hashlib.sha256(bytes(range(32)) + b"\0\0\0\1" + info).hexdigest()[:32]
    assert sealed_as(vault, reordered) != sealed_as(vault, FACT)


def test_the_published_signing_key_signs_in_the_token_and_its_signatures_fit(vault: Vault, vectors: Vectors) -> None:
    unified, one_pass = vectors["key_agreement_ephemeral_unified"][0], vectors["key_agreement_one_pass"][0]
    private_key(vault, unified["client_sign_d"], "digital-signature", Attribute.SIGN)
    public = vault.public_key("digital-signature")
    assert curves.encode_raw(public) == bytes.fromhex(unified["client_sign_q"])
    signer, verifier = TokenSigningKey(vault, "digital-signature"), CertifiedKey(public)
    point = bytes.fromhex(unified["client_epk"])
    published = PublicShare(KeyId.GUEK, point, bytes.fromhex(unified["client_sig_over_00_epk"]))
    for share in (published, PublicShare.sign(SUITE_1, KeyId.GUEK, point, signer)):
        share.check(SUITE_1, verifier)
        with pytest.raises(IntegrityError):
            PublicShare(KeyId.GAK, share.point, share.signature).check(SUITE_1, verifier)
    alone = bytes.fromhex(one_pass["client_epk"])
    verifier.verify(alone, bytes.fromhex(one_pass["client_sig_over_epk_only"]))
    verifier.verify(alone, signer.sign(alone))
