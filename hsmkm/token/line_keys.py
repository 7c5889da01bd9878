"""Line keys: AES-256 token objects that wrap the master keys of one order for line equipment that opens no packages.

A line key comes from outside, so it is known there as well: it is bound to one order by its CKA_ID, the first 16
octets of the order's SHA-256, which no later use can change. Its label in the token is `line:LABEL`.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkcs11 import Attribute, ObjectClass

from hsmkm.errors import InputError, IntegrityError, PolicyError, RefusedError, TokenRefusedError
from hsmkm.token import attributes
from hsmkm.token.template import Template, ffi
from hsmkm.token.types import CarrierRole, KeyRole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsmkm.token.vault import Vault

LINE_KEY_OCTETS = 32
BINDING_OCTETS = 16
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_MAX_FOUND = 1024


@dataclass(frozen=True, slots=True)
class LineKey:
    """A line key as it was found: what carries the master keys of a batch, for one session generation."""

    label: str
    object_handle: int

    @property
    def role(self) -> CarrierRole:
        """What it is for."""
        return CarrierRole.LINE

    def number(self) -> int:
        """Give its object handle."""
        return self.object_handle


class LineKeys:
    """The line keys of a party's token."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._session = vault.session

    def create(self, label: str, order: bytes, value: bytearray) -> None:
        """Take in a line key for the order of this SHA-256, and wipe `value` whether it goes well or not.

        Raises RefusedError if a key of this label exists or another one has the same octets, InputError for a label or
        a length that is none.
        """
        try:
            self.refuse_known(label, value)
            names: attributes.Attributes = {
                Attribute.LABEL: _named(label),
                Attribute.ID: order[:BINDING_OCTETS],
                Attribute.VALUE: ffi.from_buffer(value),
            }
            template = self._session.template(attributes.line_key() | names)
            made = self._session.cryptoki.create(template)
        finally:
            value[:] = bytes(len(value))
        try:
            self._check(label, self._session.cryptoki.differences(made, template))
            self._refuse_twin(label, made)
        except BaseException:
            self._session.destroy(made)
            raise

    def find(self, label: str, order: bytes) -> LineKey:
        """Find the line key of an order; RefusedError if there is none, or if it is bound to another order."""
        number = self._require(label)
        listed = attributes.line_key()
        self._check(label, self._session.cryptoki.differences(number, self._session.template(listed)))
        if not hmac.compare_digest(self._session.cryptoki.read(number, Attribute.ID), order[:BINDING_OCTETS]):
            raise RefusedError(
                f"the line key {label} was imported for another order",
                hint="a line key is for one order: import another",
            )
        return LineKey(label, self._session.working(number, listed))

    def destroy(self, label: str) -> None:
        """Destroy a line key; RefusedError if there is none of this label."""
        self._session.destroy(self._require(label))

    def binding(self, label: str) -> bytes:
        """Tell the first 16 octets of the SHA-256 of a line key's order; RefusedError if there is no such key."""
        return self._session.cryptoki.read(self._require(label), Attribute.ID)

    def listing(self) -> list[tuple[str, bytes]]:
        """List every line key: its label, and the first 16 octets of the SHA-256 of its order."""
        read = self._session.cryptoki.read
        return sorted((label, read(number, Attribute.ID)) for label, number in self._every())

    def exists(self, label: str) -> bool:
        """Tell whether there is a line key of this label."""
        return bool(self._objects(label))

    def refuse_known(self, label: str, value: bytearray) -> None:
        """Raise what `create` raises for a label or a value that cannot be taken in."""
        if len(value) != LINE_KEY_OCTETS:
            raise InputError(f"a line key has {LINE_KEY_OCTETS} octets, not {len(value)}")
        if not any(value):
            raise InputError("the line key is all zeros", hint="its components are the same one, or no key")
        if "create-object" not in self._session.profile.ladders["import"][:1]:
            raise PolicyError("a token of this profile takes no keys in clear", hint="use a line that opens packages")
        if _LABEL.fullmatch(label) is None:
            hint = "letters, digits, dot, dash and underscore, at most 32"
            raise InputError(f"{label!r} is no label of a line key", hint=hint)
        if self.exists(label):
            raise RefusedError(
                f"the token has a line key {label}", hint=f"use another label, or hsmkm token destroy-key {label}"
            )

    @staticmethod
    def _check(label: str, wrong: list[str]) -> None:
        if wrong:
            raise IntegrityError(
                f"the line key {label} has other attributes than it must have: {', '.join(wrong)}",
                hint="it was made elsewhere, or for another use: do not use it here",
            )

    def _refuse_twin(self, label: str, made: int) -> None:
        """Refuse a key that another line key is equal to: AES key wrap is deterministic, so a probe shows it."""
        cryptoki, mechanism = self._session.cryptoki, self._session.profile.mechanisms.aes_key_wrap
        with self._vault.generate(KeyRole.MASTER, 0) as probe:
            wrapped = cryptoki.wrap(mechanism, made, probe.number())
            for other, number in self._every():
                if other != label and hmac.compare_digest(cryptoki.wrap(mechanism, number, probe.number()), wrapped):
                    raise RefusedError(
                        f"the line key {other} has the same octets", hint="a line key is for one order: make another"
                    )

    def _every(self) -> Iterator[tuple[str, int]]:
        query = Template({Attribute.CLASS: int(ObjectClass.SECRET_KEY), Attribute.TOKEN: True})
        for number in self._session.cryptoki.find(query, _MAX_FOUND):
            kind, _, label = self._session.cryptoki.read(number, Attribute.LABEL).partition(b":")
            if kind == b"line":
                yield label.decode("ascii", "replace"), number

    def _require(self, label: str) -> int:
        found = self._objects(label)
        if len(found) > 1:
            raise TokenRefusedError(f"the token has two line keys {label}", hint="find out who made the second")
        if not found:
            raise RefusedError(f"the token has no line key {label}", hint="hsmkm token import-key")
        return found[0]

    def _objects(self, label: str) -> list[int]:
        query = Template(
            {Attribute.CLASS: int(ObjectClass.SECRET_KEY), Attribute.TOKEN: True, Attribute.LABEL: _named(label)}
        )
        return self._session.cryptoki.find(query, _MAX_FOUND)


def _named(label: str) -> bytes:
    return f"line:{label}".encode()
