"""MACs in bulk: C_SignInit and C_Sign with one integrity key, and nothing laid out between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsmkm.errors import TokenRefusedError
from hsmkm.token import ckr
from hsmkm.token.template import View, ffi
from hsmkm.token.types import MAC_OCTETS

if TYPE_CHECKING:
    from hsmkm.token.cryptoki import Session


class Macs:
    """Makes HMAC-SHA256 of 32 octets in one session; `key` is the object handle of an integrity key."""

    def __init__(self, session: Session, mechanism: int, key: int) -> None:
        self._session = session.handle
        self._sign_init, self._sign = session.functions["C_SignInit"], session.functions["C_Sign"]
        self._hmac = session.mechanism(mechanism)
        self._key = key
        self._out = ffi.new("unsigned char[]", MAC_OCTETS)
        self._view: View = ffi.buffer(self._out)
        self._length = ffi.new("CK_ULONG *")

    def make(self, data: bytes) -> bytes:
        """Make the MAC of some octets."""
        code = self._sign_init(self._session, self._hmac, self._key)
        if code:
            raise ckr.error(code, "C_SignInit")
        self._length[0] = MAC_OCTETS
        code = self._sign(self._session, data, len(data), self._out, self._length)
        if code:
            raise ckr.error(code, "C_Sign")
        if self._length[0] != MAC_OCTETS:
            raise TokenRefusedError(f"the token's HMAC-SHA256 has {self._length[0]} octets")
        return self._view[:]
