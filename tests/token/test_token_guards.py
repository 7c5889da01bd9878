"""What each kind of token lets whoever holds its PIN do, found by doing it: the table of docs/token.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pkcs11 import Attribute, KeyType

from hsmkm.errors import TokenRefusedError, TokenUnreachableError
from hsmkm.token import attributes
from hsmkm.token.keyring import STORAGE
from hsmkm.token.template import Template
from hsmkm.token.types import KeyRole, Use

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsmkm.token.vault import Vault

PAGE = Path(__file__).resolve().parents[2] / "docs" / "token.md"
_ROW = re.compile(r"^\| ([^|]+) \| (done|refused) \| (done|refused) \|$", re.MULTILINE)
KINDS = ("softhsm2", "nss")


class Holder:
    """Code that runs as the party: it has the PIN, and so every key of the token and of a meter."""

    def __init__(self, vault: Vault) -> None:
        self.cryptoki, self.mechanisms = vault.session.cryptoki, vault.session.profile.mechanisms
        self.vault = vault
        self.storage = vault.keyring.newest(STORAGE)[1]
        vault.create_ec_key("signing")
        self.signing = vault.key_pairs.private("signing", "sign")
        self.known = vault.generate(KeyRole.MASTER, 0).number()
        sealed, master = (vault.seal(vault.generate(role, 0)) for role in (KeyRole.GUEK, KeyRole.MASTER))
        self.wrapped = sealed.wrapped
        self.used = vault.open(KeyRole.GUEK, sealed, 0, Use.IN_USE).number()
        self.master = vault.open(KeyRole.MASTER, master, 0, Use.IN_USE).number()

    def change(self, key: int, attribute: Attribute, *, to: bool) -> None:
        self.cryptoki.set_attributes(key, Template({attribute: to}))

    def copy(self, key: int, attribute: Attribute, *, to: bool) -> None:
        self.cryptoki.copy(key, Template({attribute: to, Attribute.TOKEN: False}))

    def wrap(self, key: int, *, padded: bool = False) -> None:
        mechanism = self.mechanisms.aes_key_wrap_pad if padded else self.mechanisms.aes_key_wrap
        self.cryptoki.wrap(mechanism, self.known, key)

    def unwrap(self, under: int, *, readable: bool) -> None:
        listed = attributes.secret_key(
            KeyType.AES, frozenset(), on_token=False, sensitive=not readable, extractable=True
        )
        modifiable = not self.vault.session.profile.guards.unwrapped_unmodifiable
        template = self.vault.session.template(listed | {Attribute.MODIFIABLE: modifiable})
        self.cryptoki.unwrap(self.mechanisms.aes_key_wrap, under, self.wrapped, template)

    def longer_key(self) -> None:
        self.wrap(self.vault.generate(KeyRole.GUEK, 2).number())


ATTEMPTS: dict[str, Callable[[Holder], object]] = {
    "give the storage key the usage DECRYPT": lambda it: it.change(it.storage, Attribute.DECRYPT, to=True),
    "give a copy of the storage key the usage DECRYPT": lambda it: it.copy(it.storage, Attribute.DECRYPT, to=True),
    "give a copy of a signing key the usage DERIVE": lambda it: it.copy(it.signing, Attribute.DERIVE, to=True),
    "unwrap a key under the storage key as readable": lambda it: it.unwrap(it.storage, readable=True),
    "make a key in use EXTRACTABLE": lambda it: it.change(it.used, Attribute.EXTRACTABLE, to=True),
    "make a copy of a key in use EXTRACTABLE": lambda it: it.copy(it.used, Attribute.EXTRACTABLE, to=True),
    "make a key in use, or a copy, readable": lambda it: it.copy(it.used, Attribute.SENSITIVE, to=False),
    "give an unwrapped master key the usage DECRYPT": lambda it: it.change(it.master, Attribute.DECRYPT, to=True),
    "wrap a key in use under a key of known value": lambda it: it.wrap(it.used),
    "wrap the storage key under a key of known value": lambda it: it.wrap(it.storage),
    "wrap a signing key under a key of known value": lambda it: it.wrap(it.signing, padded=True),
    "wrap an AES-256 key under an AES-128 key": Holder.longer_key,
    "unwrap with a key that encrypts": lambda it: it.unwrap(it.used, readable=False),
    "make a MAC with a key that wraps": lambda it: it.cryptoki.sign(it.mechanisms.sha256_hmac, it.storage, b"text"),
    "read CHECK_VALUE of a generated key": lambda it: it.cryptoki.read(it.known, Attribute.CHECK_VALUE),
}


def test_the_page_tells_what_each_kind_of_token_lets_the_holder_of_its_pin_do(vault: Vault) -> None:
    told = {name: dict(zip(KINDS, each, strict=True)) for name, *each in _ROW.findall(PAGE.read_text(encoding="utf-8"))}
    holder, kind = Holder(vault), vault.session.profile.name
    found = {name: outcome(attempt, holder) for name, attempt in ATTEMPTS.items()}
    assert found == {name: each[kind] for name, each in told.items()}


def outcome(attempt: Callable[[Holder], object], holder: Holder) -> str:
    try:
        attempt(holder)
    except (TokenRefusedError, TokenUnreachableError):
        assert holder.cryptoki.alive(), "it was not a refusal"
        return "refused"
    return "done"


@pytest.mark.parametrize("profile_name", ["nss"])
def test_the_guards_of_the_profile_are_those_of_the_table(vault: Vault) -> None:
    guards = vault.session.profile.guards
    assert (guards.unwrap_template, guards.modifiable, guards.uncopyable, guards.unextractable) == (
        False,
        True,
        False,
        False,
    )
