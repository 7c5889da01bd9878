from __future__ import annotations

import shutil
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import InputError, LoginError, RefusedError, TokenRefusedError, TokenUnreachableError
from hsmkm.token.profile import load_profile, parse_profile
from hsmkm.token.session import init_token, open_session
from hsmkm.token.types import KeyRole, TokenSettings, Use
from hsmkm.token.uri import TokenUri
from hsmkm.token.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("profile_name", ["softhsm2"])
def test_a_new_token_has_an_address_with_its_serial_and_pins_for_the_owner_only(token_settings: TokenSettings) -> None:
    uri = TokenUri.parse(token_settings.uri)
    assert uri.matches(TokenUri("test", uri.serial, "SoftHSM project", "SoftHSM v2"))
    assert len(uri.serial) == 16
    for name in ("pin", "so-pin"):
        path = token_settings.home / "token" / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(path.read_text().strip()) == 32


def test_a_token_is_not_initialised_over(token_settings: TokenSettings) -> None:
    with pytest.raises(RefusedError, match="exists"):
        init_token(token_settings, "test")


@pytest.mark.parametrize("profile_name", ["nss"])
def test_a_database_of_nss_has_the_name_and_place_of_its_home(
    new_token: Callable[[str], TokenSettings], token_settings: TokenSettings
) -> None:
    label = "o'brien\\co"
    settings = new_token(label)
    assert TokenUri.parse(settings.uri).matches(TokenUri(label, "0000000000000000", "Mozilla Foundation", "NSS 3"))
    assert stat.S_IMODE((settings.home / "token" / "nss").stat().st_mode) == 0o700
    assert not (settings.home / "token" / "so-pin").exists()
    with open_session(settings) as session:
        assert str(session.uri) == settings.uri
    empty = replace(token_settings, home=settings.home.parent / "empty")
    (empty.home / "token" / "nss").mkdir(parents=True)
    shutil.copy(token_settings.home / "token" / "pin", empty.home / "token" / "pin")
    with pytest.raises(TokenUnreachableError, match="there is no database"), open_session(empty):
        pass
    assert list((empty.home / "token" / "nss").iterdir()) == []


@pytest.mark.parametrize("label", ["", " blank", "x" * 33])
def test_a_label_must_fit(label: str, token_settings: TokenSettings) -> None:
    with pytest.raises(InputError):
        init_token(token_settings, label)


def test_homes_are_used_one_after_another_in_one_process(new_token: Callable[[str], TokenSettings]) -> None:
    wrapped = []
    for name in ("one", "two", "one"):
        settings = new_token(name)
        with open_session(settings) as session:
            assert session.uri.token == name
            vault = Vault(session)
            vault.create_keys()
            wrapped.append(vault.mac(b"data").value)
    assert wrapped[0] == wrapped[2] != wrapped[1]


def test_a_process_has_one_session_of_a_module_at_a_time(vault: Vault) -> None:
    with (
        pytest.raises(TokenRefusedError, match="CKR_CRYPTOKI_ALREADY_INITIALIZED"),
        open_session(vault.session.settings),
    ):
        pass
    vault.mac(b"the first session goes on")


@pytest.mark.parametrize("profile_name", ["softhsm2"])
def test_exactly_one_token_must_match(token_settings: TokenSettings) -> None:
    with (
        pytest.raises(TokenUnreachableError, match="no token matches"),
        open_session(replace(token_settings, uri="pkcs11:token=other")),
    ):
        pass
    init_token(token_settings, "second")
    serial_less = replace(token_settings, uri="pkcs11:token=test;model=SoftHSM%20v2")
    with open_session(serial_less) as session:
        assert str(session.uri) == token_settings.uri


def test_a_wrong_pin_is_not_tried_twice_and_not_shown(token_settings: TokenSettings) -> None:
    path = token_settings.home / "token" / "wrong"
    path.write_text("not the PIN")
    path.chmod(0o600)
    wrong = replace(token_settings, pin="file:token/wrong")
    for message in ("CKR_PIN_INCORRECT", "refused this PIN before"):
        with pytest.raises(LoginError, match=message) as caught, open_session(wrong):
            pass
        assert "not the PIN" not in repr(caught.value)
    with open_session(token_settings):
        pass


def test_a_handle_lives_for_one_generation(vault: Vault) -> None:
    master, guek = vault.generate(KeyRole.MASTER, 0), vault.generate(KeyRole.GUEK, 0)
    sealed, mac = vault.seal(guek), vault.mac(b"data")
    generation = vault.session.generation
    vault.session.reconnect()
    assert vault.session.generation == generation + 1
    with pytest.raises(TokenUnreachableError, match="earlier session generation"):
        vault.wrap(master, guek)
    guek.destroy()
    vault.verify(b"data", mac)
    with vault.open(KeyRole.GUEK, sealed, 0, Use.TRANSPORT) as again:
        assert vault.seal(again) == sealed


def test_a_cipher_key_ends_with_its_generation(vault: Vault) -> None:
    sealed = {}
    for role in (KeyRole.GUEK, KeyRole.GAK):
        with vault.generate(role, 0) as key:
            sealed[role] = vault.seal(key)
    keys = [vault.open(role, each, 0, Use.IN_USE) for role, each in sealed.items()]
    cipher = vault.cipher(*keys)
    vault.session.reconnect()
    with pytest.raises(TokenUnreachableError):
        cipher.protect(bytes(12), 0x30, b"", b"data")
    cipher.close()


def test_a_token_that_is_gone_is_unreachable_and_comes_back(vault: Vault) -> None:
    tokens = vault.session.settings.home / vault.session.profile.initialisation.directory
    mac = vault.mac(b"data")
    tokens.rename(tokens.with_name("away"))
    tokens.mkdir()
    with pytest.raises(TokenUnreachableError):
        vault.session.reconnect()
    with pytest.raises(TokenUnreachableError):
        vault.mac(b"data")
    shutil.rmtree(tokens)
    tokens.with_name("away").rename(tokens)
    vault.session.reconnect()
    vault.verify(b"data", mac)


def test_a_profile_with_an_unknown_rung_or_without_a_ladder_is_refused() -> None:
    with pytest.raises(InputError, match="no token profile"):
        load_profile("no-such-token")
    with pytest.raises(InputError):
        load_profile("../pyproject")
    with pytest.raises(InputError, match="lacks"):
        parse_profile("name = 'x'")
    with pytest.raises(InputError, match="not TOML"):
        parse_profile("name")
