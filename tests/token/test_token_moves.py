"""Key sets that move in bulk are what the vault moves one key at a time, and nothing of them stays in the token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

from hsmkm.errors import IntegrityError
from hsmkm.token.moves import Move, Moves
from hsmkm.token.types import KeyRole, MeterRole, Sealed, SecretRole, Use
from tests.token.test_token_births import FORMS, parted
from tests.token.test_token_secret import PACKAGE_KEY, objects, package_key

if TYPE_CHECKING:
    from hsmkm.token.keys import KeyHandle
    from hsmkm.token.vault import Vault

Keys = tuple[tuple[MeterRole, int], ...]


def sealed(vault: Vault, suite: int, keys: Keys) -> bytes:
    """Make keys and wrap them for the store, one after the other."""
    found = b""
    for role, octets in keys:
        made = vault.generate_secret(role, octets) if isinstance(role, SecretRole) else vault.generate(role, suite)
        with made as key:
            found += vault.seal(key).wrapped
    return found


def outward(vault: Vault, keys: Keys, package: KeyHandle) -> list[Move]:
    return [Move(role, octets, vault.storage_handle(role), package.number()) for role, octets in keys]


@pytest.mark.parametrize("own_session", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_set_travels_as_the_vault_wraps_it_and_comes_back_as_it_was(
    vault: Vault,
    form: str,
    own_session: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    suite, keys = FORMS[form]
    sets = [sealed(vault, suite, keys) for _ in range(3)]
    with vault.generate_package_key() as package, vault.borrow(vault.lend(package)) as borrowed:
        with Moves(vault, outward(vault, keys, borrowed), own_session=own_session) as moves:
            made = [moves.move(one) for one in sets]
        for one, travelling in zip(sets, made, strict=True):
            stored, there = parted(one, keys), parted(travelling, keys)
            for role, _ in keys:
                with vault.open(role, Sealed(vault.storage_key, stored[role]), suite, Use.TRANSPORT) as key:
                    assert vault.wrap(package, key) == there[role]
    assert len({*sets, *made}) == 6


def test_no_key_stays_in_the_token_when_one_does_not_unwrap_and_each_such_is_told(vault: Vault) -> None:
    suite, keys = FORMS["suite 0"]
    good = sealed(vault, suite, keys)
    bad = good[:24] + bytes(24) + good[48:72] + bytes(24)
    with vault.generate_package_key() as package, Moves(vault, outward(vault, keys, package)) as moves:
        moves.move(good)
        before = objects(vault)
        with pytest.raises(IntegrityError, match="does not unwrap"):
            moves.move(bad)
        assert moves.refused(bad) == [keys[1][0], keys[3][0]]
        assert moves.refused(good) == []
        assert moves.move(good)
        with pytest.raises(IntegrityError, match="95 octets of wrapped keys instead of 96"):
            moves.move(good[:-1])
        assert objects(vault) == before


@pytest.mark.parametrize("octets", [9, 13])
def test_a_foreign_secret_whose_length_the_token_hides_is_refused(vault: Vault, octets: int) -> None:
    whole, cut = (aes_key_wrap_with_padding(PACKAGE_KEY, bytes(range(1, 1 + count))) for count in (16, octets))
    with package_key(vault) as package:
        before = objects(vault)
        move = Move(SecretRole.HLS, 16, package.number(), vault.storage_handle(SecretRole.HLS), foreign=True)
        with Moves(vault, [move]) as moves:
            assert len(moves.move(whole)) == len(whole) == len(cut)
            with pytest.raises(IntegrityError, match="no multiple of 8"):
                moves.move(cut)
            assert moves.refused(cut) == [SecretRole.HLS]
        assert objects(vault) == before


def test_a_master_key_moves_like_any_other(vault: Vault) -> None:
    one = sealed(vault, 0, ((KeyRole.MASTER, 16),))
    number = vault.storage_handle(KeyRole.MASTER, vault.storage_key)
    with Moves(vault, [Move(KeyRole.MASTER, 16, number, number)]) as moves:
        assert moves.move(one) == one
