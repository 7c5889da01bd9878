"""A token in software that a seed drives, and that remembers every key and IV it ever used together."""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from hsmkm.errors import IntegrityError
from hsmkm.simulator.keys import SoftwareKeys
from hsmkm.token.types import KEY_OCTETS, Mac, MeterRole, Sealed, Use

STORAGE, INTEGRITY = bytes(range(32)), bytes(range(32, 64))
"""Those of every simulated token: a database that was made once serves for every seed."""

NUMBER = 1


@dataclass(frozen=True)
class SoftKey:
    """A session key; leaving the context destroys it."""

    role: MeterRole
    value: bytes = field(repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left of it elsewhere."""


@dataclass
class IvRecord:
    """Every key that protected something, with the IVs that it did so with."""

    used: set[tuple[bytes, bytes]] = field(default_factory=set)
    twice: list[str] = field(default_factory=list)

    def note(self, key: bytes, iv: bytes) -> None:
        """Take note of a use, and of one that was there before."""
        if (key, iv) in self.used:
            self.twice.append(f"an IV is used twice under a key: counter {int.from_bytes(iv[8:], 'big')}")
        self.used.add((key, iv))


class SoftCipher:
    """GUEK and GAK at work; fulfils `hsmkm.dlms.ciphering.CipherKey`."""

    def __init__(self, guek: SoftKey, gak: SoftKey, record: IvRecord, step: Callable[[str], None]) -> None:
        self._guek = guek.value
        self._keys = SoftwareKeys(guek.value, gak.value)
        self._record = record
        self._step = step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is to be wiped."""

    def protect(self, iv: bytes, security_control: int, header: bytes, data: bytes) -> bytes:
        self._step("protect")
        self._record.note(self._guek, iv)
        return self._keys.protect(iv, security_control, header, data)

    def unprotect(self, iv: bytes, security_control: int, header: bytes, data: bytes) -> bytes:
        self._step("unprotect")
        return self._keys.unprotect(iv, security_control, header, data)


class SoftVault:
    """What the steps of a renewal ask of a party's vault; `step` is called before each call of the token."""

    storage_key = integrity_key = NUMBER

    def __init__(self, chance: random.Random, record: IvRecord, step: Callable[[str], None]) -> None:
        self._chance = chance
        self._record = record
        self._step = step

    def random(self, count: int) -> bytes:
        return self._chance.randbytes(count)

    def generate(self, role: MeterRole, suite: int) -> SoftKey:
        self._step("generate")
        return SoftKey(role, self.random(KEY_OCTETS[suite]))

    def seal(self, key: SoftKey) -> Sealed:
        self._step("seal")
        return Sealed(NUMBER, aes_key_wrap(STORAGE, key.value))

    def open(self, role: MeterRole, sealed: Sealed, _suite: int, _use: Use) -> SoftKey:
        self._step("open")
        return SoftKey(role, unsealed(sealed.wrapped))

    def wrap(self, under: SoftKey, key: SoftKey) -> bytes:
        self._step("wrap")
        return aes_key_wrap(under.value, key.value)

    def cipher(self, guek: SoftKey, gak: SoftKey) -> SoftCipher:
        return SoftCipher(guek, gak, self._record, self._step)

    def mac(self, data: bytes) -> Mac:
        return Mac(NUMBER, hmac.digest(INTEGRITY, data, hashlib.sha256))

    def verify(self, data: bytes, mac: Mac) -> None:
        if mac.key_number != NUMBER or not hmac.compare_digest(self.mac(data).value, mac.value):
            raise IntegrityError("a MAC does not fit its data")

    def still_there(self) -> None:
        """No key of it is ever retired."""


def unsealed(wrapped: bytes) -> bytes:
    """Open a key that lies in the store."""
    try:
        return aes_key_unwrap(STORAGE, wrapped)
    except InvalidUnwrap:
        raise IntegrityError("a sealed key was altered") from None
