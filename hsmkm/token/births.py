"""Key sets made in bulk: one PKCS#11 call for each operation, and between the calls next to nothing.

For one key set of n keys: generate n; wrap n for the store; wrap the master key under its carrier and the others
under the master key; make the MAC (2 calls); destroy n. Everything that the calls take is laid out once for a batch.

    with Births(vault, keys, carrier) as births:
        for title in titles:
            sealed, travelling = births.make()
            mac = births.mac(encoding)

In a batch whose keys share a session of their own, the keys are not destroyed one by one: they go when that is closed,
at the end of the batch. Behind a network that saves a round trip for each key.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from hsmkm.errors import PolicyError, TokenRefusedError
from hsmkm.token import ckr
from hsmkm.token.keyring import INTEGRITY
from hsmkm.token.macs import Macs
from hsmkm.token.template import ffi
from hsmkm.token.types import CarrierRole, KeyRole, MeterRole
from hsmkm.token.vault import WRAP_OVERHEAD

if TYPE_CHECKING:
    from types import TracebackType

    from hsmkm.token.attributes import Role
    from hsmkm.token.vault import Vault


class Carrier(Protocol):
    """A key under which master keys travel: that of a package, or of a line."""

    @property
    def role(self) -> Role:
        """What the key is for."""

    def number(self) -> int:
        """Give its object handle."""


_CARRIERS = frozenset({CarrierRole.PACKAGE, CarrierRole.LINE})


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to be made in each set: its role and length in octets."""

    role: MeterRole
    octets: int


class Births:
    """Makes key sets of one form, in one thread; the first key of the form is the master key.

    Raises PolicyError where it is not, or where the carrier is neither a package key nor a line key.
    """

    def __init__(self, vault: Vault, form: tuple[NewKey, ...], carrier: Carrier, *, own_session: bool = False) -> None:
        if not form or form[0].role is not KeyRole.MASTER or carrier.role not in _CARRIERS:
            raise PolicyError("a key set is born with its master key first, under a package key or a line key")
        self._vault = vault
        self._form = form
        self._stack = ExitStack()
        self._own_session = own_session
        session = self._stack.enter_context(vault.session.passing()) if own_session else vault.session.cryptoki
        self._session = session
        self._handle = session.handle
        functions = session.functions
        self._generate, self._wrap = functions["C_GenerateKey"], functions["C_WrapKey"]
        self._destroy = functions["C_DestroyObject"]
        self._keys = ffi.new("CK_ULONG[]", len(form))
        self._lay_out(carrier.number())
        self.integrity_key, integrity = vault.keyring.newest(INTEGRITY)
        self._macs = Macs(session, vault.session.profile.mechanisms.sha256_hmac, integrity)

    def _lay_out(self, carrier: int) -> None:
        """Prepare the arguments of each call: templates, storage keys, and places for what is wrapped."""
        vault, session, keys = self._vault, self._session, self._keys
        prepared = [vault.birth_of(key.role, key.octets) for key in self._form]
        self.storage_key = vault.storage_key
        self._births = [
            (session.mechanism(each.mechanism), each.template.array, each.template.count, keys + place)
            for place, each in enumerate(prepared)
        ]
        rooms = [key.octets + WRAP_OVERHEAD for key in self._form] * 2
        self._whole = sum(rooms)
        self._half = self._whole // 2
        self._out = ffi.new("unsigned char[]", self._whole)
        self._view = ffi.buffer(self._out)
        self._lengths = ffi.new("CK_ULONG[]", rooms)
        self._rooms = bytes(ffi.buffer(self._lengths))
        self._lengths_view = ffi.buffer(self._lengths)
        starts = [sum(rooms[:place]) for place in range(len(rooms))]
        carriers = [each.storage for each in prepared] + [0] * len(prepared)
        self._wraps = [
            (
                place % len(prepared),
                session.mechanism(prepared[place % len(prepared)].wrapping),
                carriers[place],
                self._out + starts[place],
                self._lengths + place,
            )
            for place in range(len(rooms))
        ]
        count = len(prepared)
        self._seals, self._carrier_wrap, self._others = (
            self._wraps[:count],
            self._wraps[count],
            self._wraps[count + 1 :],
        )
        self._carrier = carrier

    def make(self) -> tuple[bytes, bytes]:
        """Make one set: its keys wrapped for the store, and as they travel, each one after the other as in the form.

        They are gone from the token afterwards, whether it goes well or not.
        """
        session, generate, wrap, keys, born = self._handle, self._generate, self._wrap, self._keys, 0
        try:
            for mechanism, array, count, out in self._births:
                code = generate(session, mechanism, array, count, out)
                if code:
                    raise ckr.error(code, "C_GenerateKey")
                born += 1
            for place, mechanism, under, out, length in self._seals:
                code = wrap(session, mechanism, under, keys[place], out, length)
                if code:
                    raise ckr.error(code, "C_WrapKey")
            master = keys[0]
            for place, mechanism, _, out, length in self._others:
                code = wrap(session, mechanism, master, keys[place], out, length)
                if code:
                    raise ckr.error(code, "C_WrapKey")
            _, mechanism, _, out, length = self._carrier_wrap
            code = wrap(session, mechanism, self._carrier, master, out, length)
            if code:
                raise ckr.error(code, "C_WrapKey")
        finally:
            if not self._own_session:
                self._forget(born)
        self._session.made += born
        if self._lengths_view[:] != self._rooms:
            raise TokenRefusedError("the token wrapped a key into another length than its own")
        half = self._half
        return self._view[0:half], self._view[half : self._whole]

    def _forget(self, born: int) -> None:
        """Destroy each key, also after one that could not be."""
        refused = [code for place in range(born) if (code := self._destroy(self._handle, self._keys[place]))]
        if refused:
            raise ckr.error(refused[0], "C_DestroyObject")

    def mac(self, data: bytes) -> bytes:
        """Make an HMAC-SHA256 (32 octets) with the integrity key of the batch: C_SignInit and C_Sign."""
        return self._macs.make(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
