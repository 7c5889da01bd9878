"""SoftHSM writes the file of its token anew at each login, in place; a crash there must not be the end of every key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsmkm.errors import TokenUnreachableError
from hsmkm.token.session import open_session
from hsmkm.token.softhsm import COPY, REWRITTEN, is_whole
from hsmkm.token.types import TokenSettings
from hsmkm.token.vault import Vault
from tests.conftest import make_token


@pytest.fixture
def settings(tmp_path: Path) -> TokenSettings:
    return make_token(tmp_path / "home")


def token_file(settings: TokenSettings) -> Path:
    (found,) = (settings.home / "token" / "tokens").glob(f"*/{REWRITTEN}")
    return found


@pytest.mark.parametrize("octets", [0, 1, 7, 8, 100, -1])
def test_a_token_whose_file_a_crash_cut_short_is_found_again_with_its_keys(
    settings: TokenSettings, octets: int
) -> None:
    with open_session(settings) as session:
        Vault(session).create_keys()
    path = token_file(settings)
    whole = path.read_bytes()
    assert is_whole(whole)
    path.write_bytes(whole[:octets])
    assert not is_whole(whole[:octets])
    with open_session(settings) as session:
        assert Vault(session).storage_key == 1
    assert is_whole(path.read_bytes())


def test_a_file_cut_to_whole_attributes_is_not_whole(settings: TokenSettings) -> None:
    whole = token_file(settings).read_bytes()
    assert not is_whole(whole[: 8 + 16 + 8 + 32 + 16 + 8 + 16 + 16 + 8])


def test_the_copy_follows_a_changed_pin_and_is_for_its_owner_only(settings: TokenSettings) -> None:
    with open_session(settings):
        pass
    kept = token_file(settings).with_name(COPY)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.read_bytes()[8:] == token_file(settings).read_bytes()[8:]
    before = kept.stat().st_mtime_ns
    with open_session(settings):
        pass
    assert kept.stat().st_mtime_ns == before  # nothing but a number in front has changed


def test_without_a_copy_a_broken_file_is_left_as_it_is(settings: TokenSettings) -> None:
    path = token_file(settings)
    path.write_bytes(b"")
    with pytest.raises(TokenUnreachableError, match="no token matches"), open_session(settings):
        pass
    assert path.read_bytes() == b""
