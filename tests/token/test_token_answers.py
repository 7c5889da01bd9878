"""What a token that lies about lengths is believed: nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from pkcs11 import Attribute

from hsmkm.errors import IntegrityError, TokenRefusedError
from hsmkm.token.cryptoki import Session
from hsmkm.token.template import Template, ffi
from hsmkm.token.types import KeyRole, Use
from tests.faults.fuzz_token import KEY, MECHANISM, ROOM, Answers, session

if TYPE_CHECKING:
    from hsmkm.token.keys import KeyHandle
    from hsmkm.token.vault import Vault

LONG, HUGE = 1025, (1 << 64) - 1


class Same(Answers):
    """Answers of one length; every call succeeds."""

    def __init__(self, length: int) -> None:
        super().__init__(b"")
        self._length = length

    def length(self) -> int:
        return self._length


@pytest.mark.parametrize("length", [LONG, HUGE])
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda one: one.wrap(MECHANISM, KEY, KEY), id="wrap"),
        pytest.param(lambda one: one.sign(MECHANISM, KEY, b"data"), id="sign"),
        pytest.param(lambda one: one.find(Template({Attribute.LABEL: b"a"}), 4), id="find"),
        pytest.param(lambda one: one.read(KEY, Attribute.EC_POINT), id="read"),
        pytest.param(lambda one: one._module.slots(), id="slots"),
        pytest.param(lambda one: cipher(one.encrypt), id="encrypt"),
        pytest.param(lambda one: cipher(one.decrypt), id="decrypt"),
    ],
)
def test_an_answer_that_is_longer_than_its_room_is_refused(call: Callable[[Session], object], length: int) -> None:
    with pytest.raises(TokenRefusedError):
        call(session(Same(length)))


def cipher(call: Callable[..., int]) -> int:
    return call(ffi.new("CK_MECHANISM *"), KEY, b"data", ffi.new("unsigned char[]", ROOM), ROOM)


@pytest.mark.parametrize("length", [LONG, HUGE])
def test_an_attribute_of_another_length_differs_and_nothing_behind_it_is_read(length: int) -> None:
    template = Template({Attribute.LABEL: b"storage:1", Attribute.WRAP: True})
    assert session(Same(length)).differences(KEY, template) == ["LABEL", "WRAP"]


def opened(vault: Vault) -> tuple[KeyHandle, KeyHandle]:
    """Open a GUEK and a GAK for use."""
    with vault.generate(KeyRole.GUEK, 0) as guek, vault.generate(KeyRole.GAK, 0) as gak:
        sealed = vault.seal(guek), vault.seal(gak)
    return vault.open(KeyRole.GUEK, sealed[0], 0, Use.IN_USE), vault.open(KeyRole.GAK, sealed[1], 0, Use.IN_USE)


def test_a_gak_that_is_shown_in_part_authenticates_nothing(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, told = opened(vault), Session.read_into
    monkeypatch.setattr(Session, "read_into", lambda *arguments: told(*arguments) - 1)
    with pytest.raises(IntegrityError, match="15 octets of a GAK of 16"):
        vault.cipher(*keys)


def test_a_plaintext_of_another_length_than_its_ciphertext_is_refused(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind it in the buffer is of an earlier APDU."""
    iv, decrypt = bytes(12), Session.decrypt
    with vault.cipher(*opened(vault)) as key:
        protected = key.protect(iv, 0x30, b"", b"a secret of ours")
        assert key.unprotect(iv, 0x30, b"", protected) == b"a secret of ours"
        monkeypatch.setattr(Session, "decrypt", lambda *arguments: decrypt(*arguments) + 4)
        with pytest.raises(IntegrityError, match="20 octets for 28"):
            key.unprotect(iv, 0x30, b"", protected)
