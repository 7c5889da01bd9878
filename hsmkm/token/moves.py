"""Key sets taken in bulk from under some keys to under others: out of the store into a package, or the other way.

For each key of a set: unwrap it for transport, wrap it, destroy it; a key is in the token no longer than that. What the
calls take is laid out once for a batch, and none of them asks for a length.

    with Moves(vault, [Move(role, octets, source, target), ...]) as moves:
        for wrapped in sets:
            travelling = moves.move(wrapped)

In a batch whose keys share a session of their own, the keys go when that is closed, at the end of the batch.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from hsmkm.errors import IntegrityError, TokenRefusedError
from hsmkm.token import ckr
from hsmkm.token.keys import KeyHandle
from hsmkm.token.secret import comes_back_whole
from hsmkm.token.template import View, ffi
from hsmkm.token.types import MeterRole, SecretRole, Use
from hsmkm.token.vault import WRAP_OVERHEAD

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from hsmkm.token.vault import Vault


@dataclass(frozen=True, slots=True)
class Move:
    """A key of each set: its role and length in octets, and the object handles of the keys it leaves and comes under.

    `foreign` says that somebody else wrapped it: a secret is then tried whether it comes back as it is.
    """

    role: MeterRole
    octets: int
    source: int
    target: int
    foreign: bool = False


class Moves:
    """Takes key sets of one form from under their keys to under others, in one thread."""

    def __init__(self, vault: Vault, form: Sequence[Move], *, own_session: bool = False) -> None:
        self._vault = vault
        self._form = tuple(form)
        self._stack = ExitStack()
        self._own_session = own_session
        self._session = self._stack.enter_context(vault.session.passing()) if own_session else vault.session.cryptoki
        functions = self._session.functions
        self._unwrap, self._wrap = functions["C_UnwrapKey"], functions["C_WrapKey"]
        self._destroy = functions["C_DestroyObject"]
        self._passages = [vault.passage_of(move.role) for move in self._form]
        self._proven = False
        self._key = ffi.new("CK_ULONG *")
        self._lay_out()

    def _lay_out(self) -> None:
        """Prepare the arguments of each call, and places for what is wrapped on the way in and out."""
        rooms = [move.octets + WRAP_OVERHEAD for move in self._form]
        self._whole = sum(rooms)
        self._in, self._out = (ffi.new("unsigned char[]", max(self._whole, 1)) for _ in range(2))
        self._view: View = ffi.buffer(self._out)
        self._lengths = ffi.new("CK_ULONG[]", rooms)
        self._lengths_view = ffi.buffer(self._lengths)
        self._rooms = bytes(self._lengths_view)
        self._plan = []
        for place, (move, passage) in enumerate(zip(self._form, self._passages, strict=True)):
            start, template = sum(rooms[:place]), passage.template
            mechanism = self._session.mechanism(passage.wrapping)
            source = mechanism, move.source, self._in + start, rooms[place], template.array, template.count
            target = mechanism, move.target, self._out + start, self._lengths + place
            is_tried = move.foreign and isinstance(move.role, SecretRole)
            self._plan.append((place, source, target, is_tried))

    def move(self, wrapped: bytes) -> bytes:
        """Take one set: its keys as they lie, one after the other as in the form; as they come to lie, in that order.

        Raises IntegrityError if one of them does not unwrap. None is in the token afterwards.
        """
        if len(wrapped) != self._whole:
            raise IntegrityError(f"a set has {len(wrapped)} octets of wrapped keys instead of {self._whole}")
        ffi.memmove(self._in, wrapped, self._whole)
        session, unwrap, wrap, destroy, key = self._session.handle, self._unwrap, self._wrap, self._destroy, self._key
        keeps, proven = self._own_session, self._proven
        for place, (mechanism, source, at, octets, array, count), (_, target, out, length), is_tried in self._plan:
            if unwrap(session, mechanism, source, at, octets, array, count, key):
                self._unwrap_again(place)
            number = key[0]
            try:
                if is_tried or not proven:
                    self._look_at(place, number)
                code = wrap(session, mechanism, target, number, out, length)
                if code:
                    raise ckr.error(code, "C_WrapKey")
            finally:
                code = 0 if keeps else destroy(session, number)
            if code:
                raise ckr.error(code, "C_DestroyObject")
        self._proven = True
        self._session.made += len(self._plan)
        if self._lengths_view[:] != self._rooms:
            raise TokenRefusedError("the token wrapped a key into another length than its own")
        return self._view[0 : self._whole]

    def refused(self, wrapped: bytes) -> list[MeterRole]:
        """Tell which keys of a set, which does not move whole, do not move: each is tried alone."""
        wrong, start = [], 0
        for move in self._form:
            end = start + move.octets + WRAP_OVERHEAD
            try:
                with Moves(self._vault, [move]) as alone:
                    alone.move(wrapped[start:end])
            except IntegrityError:
                wrong.append(move.role)
            start = end
        return wrong

    def _unwrap_again(self, place: int) -> None:
        """Make a call again that failed, to blame the octets or the token for it; a key that unwraps now goes on."""
        move, passage = self._form[place], self._passages[place]
        start = sum(each.octets + WRAP_OVERHEAD for each in self._form[:place])
        wrapped = bytes(ffi.buffer(self._in + start, move.octets + WRAP_OVERHEAD))
        self._key[0] = self._session.unwrap(passage.wrapping, move.source, wrapped, passage.template)

    def _look_at(self, place: int, number: int) -> None:
        """Read back the first key of a template, and try whether a foreign secret comes back from its seal as it is."""
        move = self._form[place]
        self._vault.prove(number, self._passages[place].template, move.role)
        if move.foreign and isinstance(move.role, SecretRole):
            handle = KeyHandle(self._vault.session, number, move.role, Use.TRANSPORT, move.octets)
            if not comes_back_whole(self._vault, move.role, handle):
                hint = "the sender must renew it"
                raise IntegrityError(f"the length of an {move.role} secret is no multiple of 8", hint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
