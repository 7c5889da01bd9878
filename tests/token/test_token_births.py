"""Key sets that are made in bulk are what the vault makes one key at a time, and nothing of them stays in the token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import IntegrityError, PolicyError, TokenBusyError
from hsmkm.token import ckr
from hsmkm.token.births import Births, NewKey
from hsmkm.token.template import Template
from hsmkm.token.types import KeyRole, Mac, MeterRole, Sealed, SecretRole, Use

if TYPE_CHECKING:
    from hsmkm.token.vault import Vault

ROLES = (KeyRole.MASTER, KeyRole.GUEK, KeyRole.GBEK, KeyRole.GAK)
FORMS: dict[str, tuple[int, tuple[tuple[MeterRole, int], ...]]] = {
    "suite 0": (0, tuple((role, 16) for role in ROLES)),
    "suite 2": (2, tuple((role, 32) for role in ROLES)),
    "LLS": (0, (*((role, 16) for role in ROLES), (SecretRole.LLS, 8))),
    "HLS": (1, (*((role, 16) for role in ROLES), (SecretRole.HLS, 64))),
}


@pytest.mark.parametrize("own_session", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_set_opens_from_the_store_and_travels_as_the_vault_wraps_it(
    vault: Vault,
    form: str,
    own_session: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    suite, keys = FORMS[form]
    new_keys = tuple(NewKey(role, octets) for role, octets in keys)
    with vault.generate_package_key() as package:
        lent = vault.lend(package)
        with vault.borrow(lent) as borrowed, Births(vault, new_keys, borrowed, own_session=own_session) as births:
            made = [births.make() for _ in range(3)]
            mac = Mac(births.integrity_key, births.mac(b"text"))
            storage_key = births.storage_key
        vault.verify(b"text", mac)
        for sealed, travelling in made:
            parts = [parted(octets, keys) for octets in (sealed, travelling)]
            stored = {role: Sealed(storage_key, wrapped) for role, wrapped in parts[0].items()}
            with vault.open(KeyRole.MASTER, stored[KeyRole.MASTER], suite, Use.TRANSPORT) as master:
                assert vault.wrap(package, master) == parts[1][KeyRole.MASTER]
            with vault.open(KeyRole.MASTER, stored[KeyRole.MASTER], suite, Use.IN_USE) as master:
                for role, _ in keys[1:]:
                    with vault.open(role, stored[role], suite, Use.TRANSPORT) as key:
                        assert vault.wrap(master, key) == parts[1][role]
    assert len({octets for pair in made for octets in pair}) == 6


def parted(octets: bytes, keys: tuple[tuple[MeterRole, int], ...]) -> dict[MeterRole, bytes]:
    found, start = {}, 0
    for role, length in keys:
        found[role] = octets[start : start + length + 8]
        start += length + 8
    assert start == len(octets)
    return found


@pytest.mark.parametrize("own_session", [False, True])
def test_no_key_of_a_batch_is_left_in_the_token(vault: Vault, own_session: bool) -> None:  # noqa: FBT001 - as above
    form = tuple(NewKey(role, 16) for role in ROLES)
    with vault.generate_package_key() as package:
        before = vault.session.cryptoki.find(Template({}), 100)
        with Births(vault, form, package, own_session=own_session) as births:
            births.make()
        assert vault.session.cryptoki.find(Template({}), 100) == before


def test_a_key_that_the_token_does_not_destroy_leaves_no_other_behind(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = tuple(NewKey(role, 16) for role in ROLES)
    with vault.generate_package_key() as package, Births(vault, form, package) as births:
        before = vault.session.cryptoki.find(Template({}), 100)
        destroy, refusals = births._destroy, iter([ckr.CODES["CKR_DEVICE_MEMORY"]])
        monkeypatch.setattr(births, "_destroy", lambda session, key: next(refusals, 0) or destroy(session, key))
        with pytest.raises(TokenBusyError, match="C_DestroyObject"):
            births.make()
        assert len(vault.session.cryptoki.find(Template({}), 100)) == len(before) + 1


def test_a_set_begins_with_its_master_key_and_travels_under_a_package_key(vault: Vault) -> None:
    with vault.generate_package_key() as package, vault.generate(KeyRole.MASTER, 0) as master:
        with pytest.raises(PolicyError, match="master key first"):
            Births(vault, (NewKey(KeyRole.GUEK, 16),), package)
        with pytest.raises(PolicyError, match="under a package key"):
            Births(vault, (NewKey(KeyRole.MASTER, 16),), master)
        with pytest.raises(PolicyError, match="is not lent"):
            vault.lend(master)


def test_what_is_borrowed_only_wraps_and_was_lent_by_this_token(vault: Vault) -> None:
    with vault.generate_package_key() as package:
        lent = vault.lend(package)
    with pytest.raises(IntegrityError):
        vault.borrow(Sealed(lent.storage_key, bytes(40)))
    with vault.borrow(lent) as borrowed, pytest.raises(PolicyError, match="not stored"):
        vault.seal(borrowed)
