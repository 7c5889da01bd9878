"""DLMS key agreement in the token against published numbers; private keys of vectors are imported here only."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from pkcs11 import Attribute

from hsmkm.errors import InputError, PolicyError, TokenUnreachableError
from hsmkm.token import attributes, curves
from hsmkm.token.agreement import agree_dlms, make_ephemeral_pair
from hsmkm.token.derivation import Kdf, Wanted, agree, choose_rung, derive
from hsmkm.token.session import open_session
from hsmkm.token.template import Template
from hsmkm.token.types import CarrierRole, KeyRole, SecretRole, SessionRole, Use
from hsmkm.token.vault import Vault
from tests.published import private_key, published_pair

if TYPE_CHECKING:
    from hsmkm.token.keys import KeyHandle
    from hsmkm.token.types import TokenSettings

Vectors = dict[str, list[dict[str, str]]]
ALGORITHM_5, ALGORITHM_6 = bytes.fromhex("60857405080300"), bytes.fromhex("60857406080300")
CURVES: dict[int, Any] = {1: ec.SECP256R1(), 2: ec.SECP384R1()}
HASHES = {1: hashlib.sha256, 2: hashlib.sha384}
OCTETS = {1: 16, 2: 32}


def sp800(suite: int, shared: bytes, info: bytes) -> bytes:
    return HASHES[suite](b"\0\0\0\1" + shared + info).digest()[: OCTETS[suite]]


def value_of(vault: Vault, key: KeyHandle) -> bytes:
    """Read a key in transport, by wrapping it under a master key of known value."""
    with (
        vault.import_key(KeyRole.MASTER, 2, bytearray(32)) as known,
        vault.open(KeyRole.MASTER, vault.seal(known), 2, Use.IN_USE) as master,
    ):
        return aes_key_unwrap(bytes(32), vault.wrap(master, key))


def other_info(algorithm: bytes, first: str, second: str) -> bytes:
    return algorithm + bytes.fromhex(first) + bytes.fromhex(second)


def test_ephemeral_unified_gives_the_published_keys(vault: Vault, vectors: Vectors) -> None:
    vector = vectors["key_agreement_ephemeral_unified"][0]
    for algorithm, name in ((ALGORITHM_5, "guek_alg_60857405080300"), (ALGORITHM_6, "guek_alg_60857406080300")):
        info = other_info(algorithm, vector["st_client"], vector["st_server"])
        with (
            published_pair(vault, vector["server_esk"]) as own,
            agree_dlms(vault, own, bytes.fromhex(vector["client_epk"]), info, KeyRole.GUEK) as key,
        ):
            assert own.point.hex().upper() == vector["server_epk"]
            assert (key.use, key.octets) == (Use.TRANSPORT, 16)
            assert value_of(vault, key).hex().upper() == vector[name]


@pytest.mark.parametrize("algorithm", [ALGORITHM_5, ALGORITHM_6])
def test_one_pass_gives_the_published_keys_to_both_sides(vault: Vault, vectors: Vectors, algorithm: bytes) -> None:
    vector = vectors["key_agreement_one_pass"][0]
    info = other_info(algorithm, vector["partyU"], vector["partyV"])
    expected = vector["ek_alg_05" if algorithm == ALGORITHM_5 else "ek_alg_06"]
    private_key(vault, vector["server_ka_d"], "key-agreement")
    with (
        published_pair(vault, vector["client_esk"]) as own,
        agree_dlms(vault, own, bytes.fromhex(vector["server_ka_q"]), info, KeyRole.GBEK) as sent,
        agree_dlms(vault, "key-agreement", bytes.fromhex(vector["client_epk"]), info, KeyRole.GBEK) as received,
    ):
        assert own.point.hex().upper() == vector["client_epk"]
        assert value_of(vault, sent).hex().upper() == value_of(vault, received).hex().upper() == expected


def shared_secret(vault: Vault, value: bytes) -> int:
    listed = attributes.shared_secret(derives=choose_rung(vault, Kdf.SP800) == "concatenate")
    return vault.session.cryptoki.create(Template(listed | {Attribute.VALUE: value}))


def wanted_guek(octets: int = 16) -> Wanted:
    listed = attributes.session_key(KeyRole.GUEK, Use.TRANSPORT)
    return Wanted(listed, KeyRole.GUEK, Use.TRANSPORT, octets)


def test_the_check_of_the_kdf_with_a_secret_of_leading_zeros(vault: Vault) -> None:
    info = other_info(ALGORITHM_5, "4D4D4D0000000001", "4D4D4D0000BC614E")
    shared = shared_secret(vault, bytes(range(32)))
    with derive(vault, Kdf.SP800, "P-256", shared, info, wanted_guek()) as key:
        assert value_of(vault, key).hex() == "40578b0a78fac267414ba0bc0a47c00a"


@pytest.mark.parametrize("kdf", list(Kdf))
def test_leading_zeros_of_an_agreed_secret_are_kept(vault: Vault, vectors: Vectors, kdf: Kdf) -> None:
    value = vectors["key_agreement_one_pass"][0]["client_esk"]
    ours = ec.derive_private_key(int(value, 16), ec.SECP256R1())
    peers = (ec.derive_private_key(scalar, ec.SECP256R1()).public_key() for scalar in range(1, 1 << 16))
    peer = next(each for each in peers if ours.exchange(ec.ECDH(), each)[0] == 0)
    shared = ours.exchange(ec.ECDH(), peer)
    with published_pair(vault, value) as own, agree(vault, kdf, own.private(), peer, b"info", wanted_guek()) as key:
        hashed = b"\0\0\0\1" + shared if kdf is Kdf.SP800 else shared + b"\0\0\0\1"
        assert value_of(vault, key) == hashlib.sha256(hashed + b"info").digest()[:16]


def test_the_order_of_x963_gives_another_key(vault: Vault, vectors: Vectors) -> None:
    vector = vectors["key_agreement_ephemeral_unified"][0]
    info = other_info(ALGORITHM_5, vector["st_client"], vector["st_server"])
    peer = curves.decode_raw("P-256", bytes.fromhex(vector["client_epk"]))
    with (
        published_pair(vault, vector["server_esk"]) as own,
        agree(vault, Kdf.X963, own.private(), peer, info, wanted_guek()) as wrong,
    ):
        value = value_of(vault, wrong)
    reordered = bytes.fromhex(vector["z"]) + b"\0\0\0\1" + info
    assert value == hashlib.sha256(reordered).digest()[:16]
    assert value.hex().upper() != vector["guek_alg_60857405080300"]


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("role", [KeyRole.MASTER, KeyRole.GUEK, KeyRole.GBEK, KeyRole.GAK])
def test_an_agreed_key_is_like_an_unwrapped_one(vault: Vault, suite: int, role: KeyRole) -> None:
    meter = ec.generate_private_key(CURVES[suite])
    with make_ephemeral_pair(vault, suite) as own:
        shared = meter.exchange(ec.ECDH(), own.public)
        with agree_dlms(vault, own, curves.encode_raw(meter.public_key()), b"info", role) as key:
            assert value_of(vault, key) == sp800(suite, shared, b"info")
            sealed = vault.seal(key)
            for name, expected in (("SENSITIVE", b"\1"), ("EXTRACTABLE", b"\1"), ("ENCRYPT", b"\0"), ("WRAP", b"\0")):
                assert vault.session.cryptoki.read(key.number(), Attribute[name]) == expected
    with vault.open(role, sealed, suite, Use.IN_USE) as used:
        assert (used.role, used.octets) == (role, OCTETS[suite])


@pytest.mark.parametrize("suite", [1, 2])
def test_static_unified_and_an_ephemeral_key_in_use(vault: Vault, suite: int) -> None:
    curve = "P-256" if suite == 1 else "P-384"
    vault.create_ec_key("key-agreement", curve, "derive")
    meter = ec.generate_private_key(CURVES[suite])
    info = ALGORITHM_5 + bytes(8) + b"\xff" + bytes(255) + bytes(8)
    value = sp800(suite, meter.exchange(ec.ECDH(), vault.public_key("key-agreement")), info)
    with (
        vault.generate(KeyRole.GAK, suite) as born,
        vault.open(KeyRole.GAK, vault.seal(born), suite, Use.IN_USE) as gak,
        agree_dlms(
            vault, "key-agreement", curves.encode_raw(meter.public_key()), info, SessionRole.EPHEMERAL
        ) as ephemeral,
        vault.cipher(ephemeral, gak) as cipher,
    ):
        made = cipher.protect(bytes(12), 0x20 | suite, b"", b"data")
        assert AESGCM(value).encrypt(bytes(12), b"data", b"")[:4] == made
        assert vault.session.cryptoki.read(ephemeral.number(), Attribute.EXTRACTABLE) == b"\0"
        with pytest.raises(PolicyError):
            vault.seal(ephemeral)


def test_points_that_are_not_the_other_sides_are_refused(vault: Vault) -> None:
    good = curves.encode_raw(ec.generate_private_key(ec.SECP256R1()).public_key())
    off = good[:-1] + bytes((good[-1] ^ 1,))
    other_curve = curves.encode_raw(ec.generate_private_key(ec.SECP384R1()).public_key())
    with make_ephemeral_pair(vault, 1) as own:
        for point in (b"", bytes(64), off, b"\4" + good, good[:-1], other_curve):
            with pytest.raises(InputError, match="point"):
                agree_dlms(vault, own, point, b"info", KeyRole.GUEK)
        with pytest.raises(InputError, match="our own"):
            agree_dlms(vault, own, own.point, b"info", KeyRole.GUEK)
        for info in (b"", bytes(280)):
            with pytest.raises(InputError, match="OtherInfo"):
                agree_dlms(vault, own, good, info, KeyRole.GUEK)
        for role in (SessionRole.DEDICATED, SecretRole.HLS, CarrierRole.AGREED):
            with pytest.raises(InputError, match="not agreed on"):
                agree_dlms(vault, own, good, b"info", role)  # type: ignore[arg-type]
    for suite in (0, 3):
        with pytest.raises(InputError, match="no key agreement"):
            make_ephemeral_pair(vault, suite)


def test_a_pair_is_gone_after_its_use_and_with_its_session(vault: Vault) -> None:
    point = curves.encode_raw(ec.generate_private_key(ec.SECP256R1()).public_key())
    before = len(vault.session.cryptoki.find(Template({}), 1000))
    with make_ephemeral_pair(vault, 1) as own:
        agree_dlms(vault, own, point, b"info", KeyRole.GUEK).destroy()
    assert len(vault.session.cryptoki.find(Template({}), 1000)) == before
    with pytest.raises(TokenUnreachableError, match="gone"):
        agree_dlms(vault, own, point, b"info", KeyRole.GUEK)
    with make_ephemeral_pair(vault, 1) as old:
        vault.session.reconnect()
        with pytest.raises(TokenUnreachableError, match="gone"):
            old.private()


def test_a_token_without_a_way_that_is_allowed_says_so(
    token_settings: TokenSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session(replace(token_settings, kdf_on_host=False)) as session:
        vault = Vault(session)
        monkeypatch.setitem(session.profile.ladders, "kdf_sp800", ("digest-key",))
        with make_ephemeral_pair(vault, 1) as own, pytest.raises(PolicyError, match="policy forbids"):
            agree_dlms(vault, own, bytes(64), b"info", KeyRole.GUEK)
        monkeypatch.setitem(session.profile.ladders, "kdf_sp800", ())
        with make_ephemeral_pair(vault, 1) as own, pytest.raises(PolicyError, match="no way"):
            agree_dlms(vault, own, bytes(64), b"info", KeyRole.GUEK)


@pytest.mark.parametrize(("suite", "number"), [(1, 0x10), (2, 0x11)])
def test_a_token_with_the_kdf_of_sp_800_is_asked_for_it_in_one_call(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, suite: int, number: int
) -> None:
    asked: list[tuple[int, bytes]] = []
    cryptoki = vault.session.cryptoki

    def derive_ecdh(_mechanism: int, _private: int, _point: bytes, _template: Template, kdf: int, info: bytes) -> int:
        asked.append((kdf, info))
        listed = attributes.session_key(KeyRole.GUEK, Use.TRANSPORT)
        modifiable = not vault.session.profile.guards.unwrapped_unmodifiable
        made = {Attribute.VALUE: bytes(OCTETS[suite]), Attribute.MODIFIABLE: modifiable}
        return cryptoki.create(Template(listed | made))

    monkeypatch.setitem(vault.session.profile.ladders, "kdf_sp800", ("native", "digest-key"))
    meter = curves.encode_raw(ec.generate_private_key(CURVES[suite]).public_key())
    with make_ephemeral_pair(vault, suite) as own:
        monkeypatch.setattr(cryptoki, "derive_ecdh", derive_ecdh)
        agree_dlms(vault, own, meter, b"info", KeyRole.GUEK).destroy()
    assert asked == [(number, b"info")]
