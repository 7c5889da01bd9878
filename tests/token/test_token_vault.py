from __future__ import annotations

import pickle
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from pkcs11 import Attribute, KeyType

from hsmkm.errors import (
    IntegrityError,
    PolicyError,
    RefusedError,
    TokenRefusedError,
    TokenUnreachableError,
)
from hsmkm.token import attributes, curves
from hsmkm.token.keyring import GAK_STORAGE, STORAGE
from hsmkm.token.profile import load_profile
from hsmkm.token.session import open_session
from hsmkm.token.template import Template, ffi
from hsmkm.token.types import KeyRole, Mac, Sealed, Use
from hsmkm.token.vault import Vault

if TYPE_CHECKING:
    from hsmkm.token.keys import KeyHandle
    from hsmkm.token.types import TokenSettings

AES_KEY_WRAP = 0x2109


def tool(settings: TokenSettings, *arguments: str) -> str:
    """What OpenSC's pkcs11-tool, which knows nothing of us, reads from the token."""
    done = subprocess.run(
        [
            "pkcs11-tool",
            "--module",
            load_profile("softhsm2").module(""),
            "--token-label",
            "test",
            "--login",
            "--pin",
            (settings.home / "token" / "pin").read_text().strip(),
            *arguments,
        ],
        env={"SOFTHSM2_CONF": str(settings.home / "token" / "softhsm2.conf"), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def known_key(vault: Vault, role: KeyRole, value: str, use: Use = Use.TRANSPORT) -> KeyHandle:
    with vault.import_key(role, 0, bytearray.fromhex(value)) as key:
        return vault.open(role, vault.seal(key), 0, use)


@pytest.mark.parametrize("profile_name", ["softhsm2"])
def test_the_partys_keys_are_what_another_program_sees(token_settings: TokenSettings) -> None:
    with open_session(token_settings) as session:
        vault = Vault(session)
        vault.create_keys()
        vault.create_ec_key("digital-signature")
        vault.create_ec_key("key-agreement", usage="derive")
    shown: dict[str, list[str]] = {}
    for block in tool(token_settings, "--list-objects").splitlines():
        match = re.match(r"\s+(label|Usage|Access):\s+(.*)", block)
        if match and match[1] == "label":
            label = match[2]
        elif match:
            shown.setdefault(label, []).append(re.sub(r"\s*,\s*", ", ", match[2]).strip())
    hidden = "sensitive, always sensitive, never extractable, local"
    assert shown["storage:1"] == ["wrap, unwrap", hidden]
    assert shown["gak-storage:1"] == ["wrap, unwrap", hidden]
    assert shown["integrity:1"] == ["verify", hidden]  # this pkcs11-tool does not print SIGN of secret keys
    assert hidden in shown["digital-signature"]
    assert "sign" in shown["digital-signature"]
    assert "verify" in shown["digital-signature"]
    assert sorted(shown["key-agreement"]) == sorted(["derive", "derive", hidden, "local"])


@pytest.mark.parametrize("profile_name", ["nss"])
def test_on_nss_session_copies_do_the_work_and_may_do_no_more(vault: Vault) -> None:
    cryptoki = vault.session.cryptoki
    for kind in (STORAGE, GAK_STORAGE):
        working = vault.keyring.newest(kind)[1]
        flags = {
            name: cryptoki.read(working, Attribute[name])[0]
            for name in ("TOKEN", "SENSITIVE", "EXTRACTABLE", "DECRYPT")
        }
        assert flags == {"TOKEN": 0, "SENSITIVE": 1, "EXTRACTABLE": 0, "DECRYPT": 0}
    before = len(cryptoki.find(Template({}), 100))
    vault.create_keys()
    assert len(cryptoki.find(Template({}), 100)) == before
    vault.create_ec_key("digital-signature")
    vault.sign_raw("digital-signature", b"data")
    vault.key_pairs.destroy("digital-signature")
    assert len(cryptoki.find(Template({}), 100)) == before


def test_making_the_keys_again_changes_nothing(vault: Vault) -> None:
    mac = vault.mac(b"data")
    vault.create_keys()
    assert vault.mac(b"data") == mac
    assert (vault.integrity_key, vault.storage_key) == (1, 1)


@pytest.mark.parametrize("profile_name", ["softhsm2"], indirect=True)
def test_a_key_that_the_token_did_not_make_to_its_end_is_made_anew(vault: Vault) -> None:
    """As a crash leaves it: with its label and usages, and without CKA_LOCAL, which comes with the value."""
    session = vault.session
    listed = {
        STORAGE: attributes.storage_key(guarded=True),
        "integrity": attributes.integrity_key(),
        "signing": attributes.ec_private_key(Attribute.SIGN, on_token=True),
    }
    point = {Attribute.EC_PARAMS: curves.parameters("P-256"), Attribute.VALUE: bytes(31) + b"\x01"}
    for kind, label in ((STORAGE, b"storage:2"), ("integrity", b"integrity:2"), ("signing", b"signing")):
        value = point if kind == "signing" else {Attribute.VALUE: bytes(32)}
        session.cryptoki.create(Template({**listed[kind], Attribute.LABEL: label, Attribute.ID: bytes(16), **value}))
    assert vault.keyring.newest(STORAGE)[0] == 1
    with pytest.raises(IntegrityError, match="has no key storage:2"):
        vault.keyring.number(STORAGE, 2)
    assert not vault.has_ec_key("signing")
    vault.create_ec_key("signing", "P-256")
    vault.keyring.create_up_to(2)
    assert vault.keyring.newest(STORAGE)[0] == 2
    assert vault.has_ec_key("signing")
    of_both = Template({Attribute.TOKEN: True, Attribute.LABEL: b"storage:2"})
    (made,) = session.cryptoki.find(of_both, 5)
    assert session.is_whole(made)


def test_a_storage_key_with_a_further_usage_is_not_worked_with(token_settings: TokenSettings) -> None:
    with open_session(token_settings) as session:
        listed = attributes.storage_key(guarded=session.profile.guards.unwrap_template) | {
            Attribute.LABEL: b"storage:1",
            Attribute.DECRYPT: True,
            Attribute.VALUE_LEN: 32,
        }
        session.cryptoki.generate_key(session.profile.mechanisms.aes_key_gen, session.template(listed))
        with pytest.raises(IntegrityError, match=r"storage:1 has other attributes .* DECRYPT"):
            Vault(session).create_keys()


def test_the_newest_key_is_used_and_the_older_stay_readable(vault: Vault) -> None:
    with vault.generate(KeyRole.GUEK, 0) as key:
        old, mac = vault.seal(key), vault.mac(b"data")
        vault.keyring.create_up_to(2)
        assert vault.seal(key).storage_key == 2
    assert vault.mac(b"data").key_number == 2
    vault.verify(b"data", mac)
    vault.open(KeyRole.GUEK, old, 0, Use.TRANSPORT).destroy()


@pytest.mark.parametrize("role", list(KeyRole))
@pytest.mark.parametrize("suite", [0, 1, 2])
def test_a_key_comes_back_from_its_seal(vault: Vault, role: KeyRole, suite: int) -> None:
    with vault.generate(role, suite) as key:
        sealed = vault.seal(key)
    assert len(sealed.wrapped) == (40 if suite == 2 else 24)
    with vault.open(role, sealed, suite, Use.TRANSPORT) as again:
        assert vault.seal(again) == sealed


@pytest.mark.parametrize(
    ("role", "use", "allowed"),
    [
        (KeyRole.MASTER, Use.IN_USE, {"WRAP", "SENSITIVE"}),
        (KeyRole.GUEK, Use.IN_USE, {"ENCRYPT", "DECRYPT", "SENSITIVE"}),
        (KeyRole.GBEK, Use.IN_USE, {"ENCRYPT", "DECRYPT", "SENSITIVE"}),
        (KeyRole.GAK, Use.IN_USE, {"EXTRACTABLE"}),
        *((role, Use.TRANSPORT, {"EXTRACTABLE", "SENSITIVE"}) for role in KeyRole),
        (KeyRole.MASTER, Use.BIRTH, {"EXTRACTABLE", "SENSITIVE", "WRAP"}),
        (KeyRole.GUEK, Use.BIRTH, {"EXTRACTABLE", "SENSITIVE"}),
        (KeyRole.GAK, Use.BIRTH, {"EXTRACTABLE", "SENSITIVE"}),
    ],
)
def test_a_session_key_may_do_what_its_role_and_use_say(
    vault: Vault, role: KeyRole, use: Use, allowed: set[str]
) -> None:
    key = vault.generate(role, 0)
    if use is not Use.BIRTH:
        key = vault.open(role, vault.seal(key), 0, use)
    asked = ("ENCRYPT", "DECRYPT", "WRAP", "UNWRAP", "SIGN", "VERIFY", "DERIVE", "SENSITIVE", "EXTRACTABLE", "TOKEN")
    found = {name for name in asked if vault.session.cryptoki.read(key.number(), Attribute[name]) == b"\1"}
    assert found == allowed


def test_aes_key_wrap_is_that_of_rfc_3394(vault: Vault, vectors: dict[str, list[dict[str, str]]]) -> None:
    vector = vectors["keywrap"][0]
    with (
        known_key(vault, KeyRole.MASTER, vector["kek"], Use.IN_USE) as master,
        known_key(vault, KeyRole.GUEK, vector["key"]) as guek,
    ):
        assert vault.wrap(master, guek).hex().upper() == vector["wrapped"]


def test_an_imported_value_is_wiped_even_if_it_is_refused(vault: Vault) -> None:
    value = bytearray(b"\x55" * 16)
    vault.import_key(KeyRole.GUEK, 0, value).destroy()
    assert value == bytes(16)
    short = bytearray(b"\x55" * 15)
    with pytest.raises(RefusedError):
        vault.import_key(KeyRole.GUEK, 0, short)
    assert short == bytes(15)


@pytest.mark.parametrize("octet", [0, 7, 8, 23])
def test_an_altered_seal_is_an_integrity_error(vault: Vault, octet: int) -> None:
    with vault.generate(KeyRole.GUEK, 0) as key:
        sealed = vault.seal(key)
    wrapped = bytearray(sealed.wrapped)
    wrapped[octet] ^= 0x80
    with pytest.raises(IntegrityError, match=r"CKR_GENERAL_ERROR|CKR_WRAPPED_KEY_INVALID"):
        vault.open(KeyRole.GUEK, Sealed(1, bytes(wrapped)), 0, Use.IN_USE)


def test_a_seal_of_another_length_number_or_role_is_refused(vault: Vault) -> None:
    with vault.generate(KeyRole.GUEK, 0) as key:
        sealed = vault.seal(key)
    with pytest.raises(IntegrityError, match="24 octets instead of 40"):
        vault.open(KeyRole.GUEK, sealed, 2, Use.IN_USE)
    with pytest.raises(IntegrityError, match="storage:9"):
        vault.open(KeyRole.GUEK, Sealed(9, sealed.wrapped), 0, Use.IN_USE)
    with pytest.raises(IntegrityError):
        vault.open(KeyRole.GAK, sealed, 0, Use.IN_USE)
    with pytest.raises(PolicyError):
        vault.open(KeyRole.GUEK, sealed, 0, Use.BIRTH)


def test_keys_travel_only_under_keys_made_for_it(vault: Vault) -> None:
    with (
        vault.generate(KeyRole.MASTER, 0) as master,
        vault.generate(KeyRole.GUEK, 0) as guek,
        vault.generate(KeyRole.GUEK, 2) as long,
        vault.generate_package_key() as package,
    ):
        assert len(vault.wrap(package, long)) == 40
        for under, key in ((guek, master), (master, package), (master, long), (package, package)):
            with pytest.raises(PolicyError):
                vault.wrap(under, key)
        with pytest.raises(PolicyError):
            vault.unwrap(master, vault.wrap(master, guek), KeyRole.GUEK, 0)
        with pytest.raises(PolicyError):
            vault.seal(package)


def test_a_key_in_use_is_neither_sealed_nor_wrapped(vault: Vault) -> None:
    with (
        vault.generate(KeyRole.GUEK, 0) as born,
        vault.generate_package_key() as package,
        vault.open(KeyRole.GUEK, vault.seal(born), 0, Use.IN_USE) as used,
    ):
        for refused in (lambda: vault.seal(used), lambda: vault.wrap(package, used)):
            with pytest.raises(PolicyError, match="in use"):
                refused()


def test_a_mac_is_bound_to_its_data_and_key(vault: Vault) -> None:
    mac = vault.mac(b"data")
    vault.verify(b"data", mac)
    for data, other in (
        (b"datA", mac),
        (b"data", Mac(1, mac.value[:-1] + bytes((mac.value[-1] ^ 1,)))),
        (b"data", Mac(1, mac.value[:-1])),
        (b"data", Mac(1, b"")),
        (b"data", Mac(2, mac.value)),
    ):
        with pytest.raises(IntegrityError):
            vault.verify(data, other)


def test_a_destroyed_key_works_no_more(vault: Vault) -> None:
    with vault.generate(KeyRole.GUEK, 0) as key:
        pass
    with pytest.raises(TokenUnreachableError, match="destroyed"):
        vault.seal(key)
    vault.destroy(key)


def test_a_handle_shows_neither_number_nor_value_and_stays_in_its_process(vault: Vault) -> None:
    with vault.generate(KeyRole.GUEK, 0) as key:
        assert re.fullmatch(r"KeyHandle\(guek, birth, generation \d+\)", repr(key))
        with pytest.raises(TypeError):
            pickle.dumps(key)


# The three ways in which host code reads a wrapped key on a token with default attributes. NSS bars half of one.


@pytest.mark.parametrize("profile_name", ["softhsm2"])
def test_attack_1_a_key_under_the_storage_key_does_not_unwrap_readable(vault: Vault) -> None:
    with vault.generate(KeyRole.GUEK, 0) as key:
        sealed = vault.seal(key)
    readable = attributes.session_key(KeyRole.GAK, Use.IN_USE)
    readable[Attribute.MODIFIABLE] = True
    without: attributes.Attributes = {
        name: value for name, value in readable.items() if name is not Attribute.SENSITIVE
    }
    cryptoki = vault.session.cryptoki
    for listed in (readable, without):
        with pytest.raises(TokenRefusedError, match="CKR_TEMPLATE_INCONSISTENT"):
            cryptoki.unwrap(AES_KEY_WRAP, vault.keyring.newest(STORAGE)[1], sealed.wrapped, Template(listed))


@pytest.mark.parametrize("kind", [STORAGE, GAK_STORAGE])
def test_attack_2_the_storage_key_gets_no_further_usage(vault: Vault, kind: str) -> None:
    key = vault.keyring.newest(kind)[1]
    usage = Template({Attribute.DECRYPT: True})
    with pytest.raises(TokenRefusedError):
        vault.session.cryptoki.set_attributes(key, usage)
    if vault.session.profile.guards.uncopyable:
        with pytest.raises(TokenRefusedError):
            vault.session.cryptoki.copy(key, usage)


@pytest.mark.parametrize("profile_name", ["softhsm2"])
def test_attack_3_a_known_wrapping_key_takes_out_keys_in_transport_but_none_in_use(vault: Vault) -> None:
    known = bytes(range(32))
    value = ffi.new("unsigned char[32]", known)
    wrapping = attributes.secret_key(
        KeyType.AES, frozenset({Attribute.WRAP}), on_token=False, sensitive=True, extractable=False
    )
    cryptoki = vault.session.cryptoki
    thief = cryptoki.create(Template(wrapping | {Attribute.VALUE: value}))
    meter_key = "00112233445566778899aabbccddeeff"
    with known_key(vault, KeyRole.GUEK, meter_key) as transport:
        assert aes_key_unwrap(known, cryptoki.wrap(AES_KEY_WRAP, thief, transport.number())).hex() == meter_key
    for role in (KeyRole.MASTER, KeyRole.GUEK, KeyRole.GBEK):
        with (
            known_key(vault, role, meter_key, Use.IN_USE) as used,
            pytest.raises(TokenRefusedError, match="CKR_KEY_UNEXTRACTABLE"),
        ):
            cryptoki.wrap(AES_KEY_WRAP, thief, used.number())


def test_the_reference_wrap_of_attack_3_is_right() -> None:
    assert aes_key_unwrap(bytes(32), aes_key_wrap(bytes(32), bytes(16))) == bytes(16)
