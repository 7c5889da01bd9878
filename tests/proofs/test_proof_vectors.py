"""The numbers that others published for suite 0, both ways, through handles of keys in the token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pkcs11 import Attribute

from hsmkm.dlms import ciphering, hls
from hsmkm.dlms.types import SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError
from hsmkm.token import attributes
from hsmkm.token.keys import CipherKey, KeyHandle
from hsmkm.token.template import ffi
from hsmkm.token.types import CarrierRole, KeyRole, Use
from hsmkm.token.vault import Vault

Vectors = dict[str, list[dict[str, Any]]]
SUITE_0 = SecuritySuite(0)


def in_full(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries with what they leave out, which is as in the first."""
    shared = ("key", "ak", "st", "ic", "pt")
    return [{name: entries[0][name] for name in shared} | entry for entry in entries]


@contextmanager
def sealed_key(vault: Vault, role: KeyRole, value: str, use: Use) -> Iterator[KeyHandle]:
    """A key as it is used every day: imported once, sealed, and opened from its seal."""
    with vault.import_key(role, 0, bytearray.fromhex(value)) as key:
        sealed = vault.seal(key)
    with vault.open(role, sealed, 0, use) as key:
        yield key


@contextmanager
def cipher_of(vault: Vault, key: str, ak: str) -> Iterator[CipherKey]:
    with (
        sealed_key(vault, KeyRole.GUEK, key, Use.IN_USE) as guek,
        sealed_key(vault, KeyRole.GAK, ak, Use.IN_USE) as gak,
        vault.cipher(guek, gak) as made,
    ):
        yield made


def test_the_vectors_are_all_of_suite_0_and_cover_every_mode(vectors: Vectors) -> None:
    assert {entry["sc"] for entry in in_full(vectors["gcm_suite0"])} == {"10", "20", "30"}
    assert len(vectors["gcm_suite0"]) == 4
    assert len(vectors["keywrap"]) == 1
    assert [entry for entry in vectors["hls"] if entry["mech"] == 5 and not entry.get("suite")]


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
