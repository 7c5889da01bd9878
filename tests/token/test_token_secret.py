"""LLS passwords, HLS secrets and dedicated keys."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import (
    aes_key_unwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)
from pkcs11 import Attribute

from hsmkm.errors import IntegrityError, PolicyError, RefusedError, TokenRefusedError
from hsmkm.token import attributes
from hsmkm.token.keyring import STORAGE
from hsmkm.token.secret import digest_secret
from hsmkm.token.template import Template, ffi
from hsmkm.token.types import CarrierRole, Digest, KeyRole, Sealed, SecretRole, Use

if TYPE_CHECKING:
    from hsmkm.token.keys import KeyHandle
    from hsmkm.token.vault import Vault

Vectors = dict[str, list[dict[str, str]]]
PACKAGE_KEY = bytes(range(32))


def sealed_secret(vault: Vault, value: bytes, role: SecretRole = SecretRole.HLS) -> Sealed:
    with vault.import_key(role, 0, bytearray(value)) as key:
        return vault.seal(key)


def package_key(vault: Vault) -> KeyHandle:
    """A package's key of known value, as a recipient holds it."""
    value = ffi.new("unsigned char[32]", PACKAGE_KEY)
    return vault.adopt(attributes.carrier_key(Attribute.UNWRAP), value, CarrierRole.PACKAGE)


def objects(vault: Vault) -> int:
    return len(vault.session.cryptoki.find(Template({}), 1000))


@pytest.mark.parametrize("mechanism", ["3", "4"])
def test_the_published_responses_of_hls_3_and_4(vault: Vault, vectors: Vectors, mechanism: str) -> None:
    challenges = vectors["hls"][0]
    vector = next(each for each in vectors["hls"] if str(each["mech"]) == mechanism)
    sealed = sealed_secret(vault, bytes.fromhex(vector["secret"]))
    digest = Digest.MD5 if mechanism == "3" else Digest.SHA1
    for challenge, response in ((challenges["stoc"], vector["f_stoc"]), (challenges["ctos"], vector["f_ctos"])):
        assert digest_secret(vault, sealed, digest, bytes.fromhex(challenge), b"").hex().upper() == response


def test_the_published_responses_of_hls_6(vault: Vault, vectors: Vectors) -> None:
    hls = vectors["hls"][0]
    vector = next(each for each in vectors["hls"] if str(each["mech"]) == "6")
    sealed = sealed_secret(vault, bytes.fromhex(vector["secret"]))
    client = bytes.fromhex(hls["st_c"] + hls["st_s"] + hls["stoc"] + hls["ctos"])
    server = bytes.fromhex(hls["st_s"] + hls["st_c"] + hls["ctos"] + hls["stoc"])
    assert digest_secret(vault, sealed, Digest.SHA256, b"", client).hex().upper() == vector["f_stoc"]
    assert digest_secret(vault, sealed, Digest.SHA256, b"", server).hex().upper() == vector["f_ctos"]


@pytest.mark.parametrize("digest", list(Digest))
@pytest.mark.parametrize("octets", [8, 16, 24, 56, 64])
def test_a_secret_of_any_allowed_length_is_hashed_whole(vault: Vault, digest: Digest, octets: int) -> None:
    value = bytes(range(1, octets + 1))
    sealed = sealed_secret(vault, value)
    before = objects(vault)
    made = digest_secret(vault, sealed, digest, b"before", b"after")
    assert made == hashlib.new(digest.value, b"before" + value + b"after").digest()
    assert objects(vault) == before


@pytest.mark.parametrize("role", list(SecretRole))
@pytest.mark.parametrize("octets", [8, 32, 64])
def test_a_secret_comes_back_from_its_seal(vault: Vault, role: SecretRole, octets: int) -> None:
    with vault.generate_secret(role, octets) as key:
        assert repr(key).startswith(f"KeyHandle({role}, birth")
        sealed = vault.seal(key)
    assert len(sealed.wrapped) == octets + 8
    with vault.open(role, sealed, 0, Use.TRANSPORT) as again:
        assert again.octets == octets
        assert vault.seal(again) == sealed


def test_two_secrets_are_different(vault: Vault) -> None:
    with vault.generate_secret(SecretRole.HLS, 16) as one, vault.generate_secret(SecretRole.HLS, 16) as other:
        assert vault.seal(one) != vault.seal(other)


@pytest.mark.parametrize("octets", [0, 1, 7, 9, 13, 63, 65, 72])
def test_other_lengths_are_refused_and_wiped(vault: Vault, octets: int) -> None:
    value = bytearray(b"\x55" * octets)
    with pytest.raises(RefusedError, match=f"{octets} octets is refused"):
        vault.import_key(SecretRole.LLS, 0, value)
    assert value == bytes(octets)
    with pytest.raises(RefusedError):
        vault.generate_secret(SecretRole.HLS, octets)


@pytest.mark.parametrize("octets", [8, 16, 64])
def test_a_secret_travels_in_a_package_as_rfc_5649_says(vault: Vault, octets: int) -> None:
    value = bytes(range(octets))
    with package_key(vault) as package:
        wrapped = aes_key_wrap_with_padding(PACKAGE_KEY, value)
        with vault.unwrap(package, wrapped, SecretRole.HLS, 2) as key:
            sealed = vault.seal(key)
    assert digest_secret(vault, sealed, Digest.SHA256, b"", b"") == hashlib.sha256(value).digest()
    with (
        vault.import_key(KeyRole.MASTER, 0, bytearray(16)) as known,
        vault.open(KeyRole.MASTER, vault.seal(known), 0, Use.IN_USE) as master,
        vault.open(SecretRole.HLS, sealed, 0, Use.TRANSPORT) as key,
    ):
        assert aes_key_unwrap_with_padding(bytes(16), vault.wrap(master, key)) == value


@pytest.mark.parametrize("octets", [1, 7, 9, 13, 20, 63])
def test_a_secret_that_the_token_would_pad_is_refused(vault: Vault, octets: int) -> None:
    wrapped = aes_key_wrap_with_padding(PACKAGE_KEY, bytes(range(1, octets + 1)))
    with package_key(vault) as package:
        before = objects(vault)
        with pytest.raises(IntegrityError, match="no multiple of 8"):
            vault.unwrap(package, wrapped, SecretRole.HLS, 0)
        assert objects(vault) == before


def test_a_wrapped_secret_too_long_too_short_or_altered_is_refused(vault: Vault) -> None:
    with package_key(vault) as package:
        for wrapped in (b"", bytes(8), bytes(15), bytes(20), bytes(80)):
            with pytest.raises(IntegrityError, match="octets"):
                vault.unwrap(package, wrapped, SecretRole.LLS, 0)
        altered = bytearray(aes_key_wrap_with_padding(PACKAGE_KEY, bytes(16)))
        altered[3] ^= 1
        with pytest.raises(IntegrityError):
            vault.unwrap(package, bytes(altered), SecretRole.LLS, 0)


def test_an_lls_password_is_shown_in_memory_that_is_wiped(vault: Vault) -> None:
    sealed = sealed_secret(vault, b"password", SecretRole.LLS)
    with vault.open(SecretRole.LLS, sealed, 0, Use.IN_USE) as password:
        with vault.reveal(password) as shown:
            assert bytes(shown) == b"password"
        assert bytes(shown) == bytes(8)


def test_nothing_but_passwords_and_dedicated_keys_is_shown(vault: Vault) -> None:
    secret = sealed_secret(vault, b"12345678")
    with vault.generate(KeyRole.GAK, 0) as key:
        gak = vault.seal(key)
    for role, sealed in ((SecretRole.HLS, secret), (KeyRole.GAK, gak)):
        with (
            vault.open(role, sealed, 0, Use.IN_USE) as used,
            pytest.raises(PolicyError, match="is not shown"),
            vault.reveal(used),
        ):
            pass
    lls = sealed_secret(vault, b"password", SecretRole.LLS)
    with (
        vault.open(SecretRole.LLS, lls, 0, Use.TRANSPORT) as moved,
        pytest.raises(PolicyError, match="is not shown"),
        vault.reveal(moved),
    ):
        pass


def test_an_hls_secret_cannot_be_read_nor_opened_as_a_password(vault: Vault) -> None:
    sealed = sealed_secret(vault, b"12345678")
    cryptoki = vault.session.cryptoki
    for use in (Use.TRANSPORT, Use.IN_USE):
        with (
            vault.open(SecretRole.HLS, sealed, 0, use) as secret,
            pytest.raises(TokenRefusedError, match="CKR_ATTRIBUTE_SENSITIVE"),
        ):
            cryptoki.read(secret.number(), Attribute.VALUE)
    with pytest.raises(IntegrityError):
        vault.open(SecretRole.LLS, sealed, 0, Use.IN_USE)
    if not vault.session.profile.guards.unwrap_template:
        return
    readable = Template(attributes.readable_secret() | {Attribute.MODIFIABLE: True})
    wrapping = vault.session.profile.mechanisms.aes_key_wrap_pad
    with pytest.raises(TokenRefusedError, match="CKR_TEMPLATE_INCONSISTENT"):
        cryptoki.unwrap(wrapping, vault.keyring.newest(STORAGE)[1], sealed.wrapped, readable)


def test_a_token_that_hashes_no_secret_says_so(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = sealed_secret(vault, b"12345678")
    monkeypatch.setitem(vault.session.profile.ladders, "digest_md5", ())
    with pytest.raises(PolicyError, match="md5"):
        digest_secret(vault, sealed, Digest.MD5, b"", b"")


@pytest.mark.parametrize("profile_name", ["softhsm2"])
def test_a_digest_that_the_token_refuses_leaves_no_operation_open(vault: Vault) -> None:
    out = ffi.new("unsigned char[16]")
    mechanisms = vault.session.profile.mechanisms
    with (
        vault.open(SecretRole.HLS, sealed_secret(vault, bytes(8)), 0, Use.IN_USE) as secret,
        pytest.raises(TokenRefusedError, match="CKR_KEY_INDIGESTIBLE"),
    ):
        vault.session.cryptoki.digest_key(mechanisms.md5, b"", secret.number(), b"", out)
    assert len(digest_secret(vault, sealed_secret(vault, bytes(8)), Digest.SHA1, b"", b"")) == 20


@pytest.mark.parametrize("suite", [0, 1, 2])
def test_a_dedicated_key_protects_and_is_shown_to_the_initiate_request(vault: Vault, suite: int) -> None:
    with vault.generate(KeyRole.GAK, suite) as born, vault.generate_dedicated_key(suite) as dedicated:
        with (
            vault.open(KeyRole.GAK, vault.seal(born), suite, Use.IN_USE) as gak,
            vault.cipher(dedicated, gak) as cipher,
        ):
            made = cipher.protect(bytes(12), 0x20 | suite, b"", b"data")
        with vault.reveal(dedicated) as value:
            assert len(value) == (32 if suite == 2 else 16)
            assert AESGCM(bytes(value)).encrypt(bytes(12), b"data", b"")[:4] == made
        with pytest.raises(PolicyError, match="not stored"):
            vault.seal(dedicated)


@pytest.mark.parametrize("suite", [0, 2])
def test_an_ephemeral_key_protects_and_travels_under_the_master_key_only(vault: Vault, suite: int) -> None:
    octets = 32 if suite == 2 else 16
    with (
        vault.import_key(KeyRole.MASTER, suite, bytearray(octets)) as known,
        vault.open(KeyRole.MASTER, vault.seal(known), suite, Use.IN_USE) as master,
        vault.generate(KeyRole.GAK, suite) as born,
        vault.open(KeyRole.GAK, vault.seal(born), suite, Use.IN_USE) as gak,
        vault.generate_ephemeral_key(suite) as ephemeral,
        vault.cipher(ephemeral, gak) as cipher,
        vault.generate_package_key() as package,
    ):
        value = aes_key_unwrap(bytes(octets), vault.wrap(master, ephemeral))
        made = cipher.protect(bytes(12), 0x20 | suite, b"", b"data")
        assert AESGCM(value).encrypt(bytes(12), b"data", b"")[:4] == made
        for refused in (lambda: vault.wrap(package, ephemeral), lambda: vault.seal(ephemeral)):
            with pytest.raises(PolicyError):
                refused()
