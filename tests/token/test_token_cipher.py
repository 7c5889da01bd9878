"""Ciphering against numbers that others published, through key handles of the token."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsmkm.errors import IntegrityError, PolicyError, ProtocolError, TokenUnreachableError
from hsmkm.token.template import ffi
from hsmkm.token.types import KeyRole, Use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsmkm.token.keys import CipherKey
    from hsmkm.token.vault import Vault

KEY = "000102030405060708090A0B0C0D0E0F"
AK = "D0D1D2D3D4D5D6D7D8D9DADBDCDDDEDF"


LONG_KEY = bytes(range(32)).hex()
LONG_AK = bytes(range(0xD0, 0xF0)).hex()


@contextmanager
def cipher(vault: Vault, key: str = KEY, ak: str = AK, suite: int = 0) -> Iterator[CipherKey]:
    with (
        vault.import_key(KeyRole.GUEK, suite, bytearray.fromhex(key)) as guek,
        vault.import_key(KeyRole.GAK, suite, bytearray.fromhex(ak)) as gak,
    ):
        sealed = vault.seal(guek), vault.seal(gak)
    with (
        vault.open(KeyRole.GUEK, sealed[0], suite, Use.IN_USE) as guek,
        vault.open(KeyRole.GAK, sealed[1], suite, Use.IN_USE) as gak,
        vault.cipher(guek, gak) as made,
    ):
        yield made


def test_the_published_apdus_of_suite_0(vault: Vault, vectors: dict[str, list[dict[str, str]]]) -> None:
    full: dict[str, str] = {}
    with cipher(vault) as key:
        for entry in vectors["gcm_suite0"]:
            full = {**{name: full[name] for name in ("key", "ak", "st", "ic", "pt") if name in full}, **entry}
            assert (full["key"], full["ak"]) == (KEY, AK)
            iv, control = bytes.fromhex(full["st"] + full["ic"]), int(full["sc"], 16)
            plain, apdu = bytes.fromhex(full["pt"]), bytes.fromhex(full["apdu"])
            body = apdu[7:]
            sent = key.protect(iv, control, b"", plain)
            assert (plain + sent if control == 0x10 else sent) == body
            assert key.unprotect(iv, control, b"", body) == plain


def test_the_published_apdus_of_suites_1_and_2(vault: Vault, vectors: dict[str, list[dict[str, str]]]) -> None:
    first = vectors["gcm_suite0"][0]
    iv, plain = bytes.fromhex(first["st"] + first["ic"]), bytes.fromhex(first["pt"])
    for entry in vectors["gcm_suite1_2"]:
        suite = int(entry["suite"])
        with cipher(vault, entry.get("key", KEY), entry.get("ak", AK), suite) as key:
            body = bytes.fromhex(entry["apdu"])[7:]
            assert key.protect(iv, 0x30 | suite, b"", plain) == body
            assert key.unprotect(iv, 0x30 | suite, b"", body) == plain


def test_hls_5_tokens_of_both_sides_and_of_suite_1(vault: Vault, vectors: dict[str, list[dict[str, str]]]) -> None:
    hls, suite_1 = vectors["hls"][:2]
    with cipher(vault) as key:
        for control, title, counter, challenge, token in (
            (0x10, hls["st_c"], hls["ic_c"], hls["stoc"], hls["f_stoc"]),
            (0x10, hls["st_s"], hls["ic_s"], hls["ctos"], hls["f_ctos"]),
            (0x11, hls["st_c"], hls["ic_c"], hls["stoc"], suite_1["f_stoc"]),
        ):
            tag = key.protect(bytes.fromhex(title + counter), control, b"", bytes.fromhex(challenge))
            assert f"{control:x}{counter}{tag.hex().upper()}" == token


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.binary(max_size=64),
    data=st.binary(max_size=2000),
    mode=st.sampled_from([0x10, 0x20, 0x30, 0x70]),
    suite=st.sampled_from([0, 1, 2]),
)
def test_every_apdu_is_what_openssl_makes_of_it(
    vault: Vault, header: bytes, data: bytes, mode: int, suite: int
) -> None:
    value, gak = (LONG_KEY, LONG_AK) if suite == 2 else (KEY, AK)
    iv, gcm, control = bytes(range(12)), AESGCM(bytes.fromhex(value)), mode | suite
    aad = bytes((control,)) + bytes.fromhex(gak) + header
    with cipher(vault, value, gak, suite) as key:
        made = key.protect(iv, control, header, data)
        if mode & 0x30 == 0x30:
            assert made == gcm.encrypt(iv, data, aad)[:-4]
        elif mode == 0x20:
            assert made == gcm.encrypt(iv, data, b"")[:-16]
        else:
            assert made == gcm.encrypt(iv, b"", aad + data)[:-4]
        assert key.unprotect(iv, control, header, data + made if mode == 0x10 else made) == data


def test_a_flipped_octet_anywhere_is_an_integrity_error(vault: Vault) -> None:
    iv = bytes(12)
    with cipher(vault) as key:
        for mode in (0x10, 0x30):
            sealed = key.protect(iv, mode, b"header", b"data")
            sealed = b"data" + sealed if mode == 0x10 else sealed
            for position in range(len(sealed)):
                altered = bytearray(sealed)
                altered[position] ^= 1
                with pytest.raises(IntegrityError):
                    key.unprotect(iv, mode, b"header", bytes(altered))
            for other in ((bytes(11) + b"\1", mode, b"header"), (iv, mode | 0x40, b"header"), (iv, mode, b"Header")):
                with pytest.raises(IntegrityError):
                    key.unprotect(*other, sealed)
            with pytest.raises(IntegrityError, match="shorter"):
                key.unprotect(iv, mode, b"header", sealed[:11])
        assert key.unprotect(iv, 0x30, b"", key.protect(iv, 0x30, b"", b"still works")) == b"still works"


@pytest.mark.parametrize("control", [0x00, 0x40, 0xB0, 0x32, 0x3F, 0x130])
def test_a_security_control_that_protects_nothing_known_is_refused(vault: Vault, control: int) -> None:
    with cipher(vault) as key:
        for work in (key.protect, key.unprotect):
            with pytest.raises(ProtocolError):
                work(bytes(12), control, b"", bytes(20))
        with pytest.raises(ProtocolError, match="11 octets"):
            key.protect(bytes(11), 0x30, b"", b"")
        with pytest.raises(ProtocolError, match="more than"):
            key.protect(bytes(12), 0x30, b"", bytes((1 << 20) + 1))


def test_gak_is_wiped_when_the_cipher_key_closes_and_when_its_buffer_grows(vault: Vault) -> None:
    with cipher(vault) as key:
        small = key._aad
        assert bytes(ffi.buffer(small))[1:17] == bytes.fromhex(AK)
        key.protect(bytes(12), 0x30, b"", bytes(5000))
        assert not any(bytes(ffi.buffer(small)))
        large = key._aad
        assert bytes(ffi.buffer(large))[1:17] == bytes.fromhex(AK)
    assert not any(bytes(ffi.buffer(large)))
    assert AK.lower() not in repr(key)
    with pytest.raises(TokenUnreachableError, match="closed"):
        key.protect(bytes(12), 0x30, b"", b"")


def test_keys_in_transport_or_of_other_roles_protect_nothing(vault: Vault) -> None:
    with vault.generate(KeyRole.GUEK, 0) as guek, vault.generate(KeyRole.GAK, 0) as gak:
        with pytest.raises(PolicyError, match="transport"):
            vault.cipher(guek, gak)
        with pytest.raises(PolicyError, match="not protected with a gak and a guek"):
            vault.cipher(gak, guek)
