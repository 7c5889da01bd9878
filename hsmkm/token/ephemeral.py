"""Ephemeral EC key pairs: session objects made in the token for one agreement, and destroyed after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pkcs11 import Attribute

from hsmkm.errors import TokenUnreachableError
from hsmkm.token import attributes, curves

if TYPE_CHECKING:
    from types import TracebackType

    from cryptography.hazmat.primitives.asymmetric import ec

    from hsmkm.token.session import TokenSession


class EphemeralPair:
    """A key pair that only derives, for one session generation; leaving the context destroys it."""

    __slots__ = ("_generation", "_objects", "_private", "_session", "curve", "public")

    def __init__(
        self, session: TokenSession, public: ec.EllipticCurvePublicKey, private: int, objects: tuple[int, ...]
    ) -> None:
        self._session = session
        self._generation = session.generation
        self._private = private
        self._objects = objects
        self.public = public
        self.curve = curves.name_of(public)

    @classmethod
    def make(cls, session: TokenSession, curve: str) -> Self:
        """Make a pair in the token; InputError for a curve other than P-256 and P-384."""
        cryptoki = session.cryptoki
        public = attributes.ec_public_key(Attribute.DERIVE, curves.parameters(curve), on_token=False)
        private = attributes.ec_private_key(Attribute.DERIVE, on_token=False)
        mechanism = session.profile.mechanisms.ec_key_pair_gen
        halves = cryptoki.generate_pair(mechanism, session.template(public), session.template(private))
        point = curves.from_token(
            cryptoki.read(halves[0], Attribute.EC_PARAMS), cryptoki.read(halves[0], Attribute.EC_POINT)
        )
        return cls(session, point, halves[1], halves)

    @property
    def point(self) -> bytes:
        """The public point as DLMS writes it, X || Y: 64 octets on P-256, 96 on P-384."""
        return curves.encode_raw(self.public)

    def private(self) -> int:
        """Return the private half's object handle; TokenUnreachableError once it or its generation is gone."""
        if not self._objects or self._generation != self._session.generation:
            raise TokenUnreachableError(
                "an ephemeral key pair is gone with its session", hint="begin the exchange anew"
            )
        return self._private

    def destroy(self) -> None:
        """Destroy both halves; a pair that is gone stays so."""
        objects, self._objects = self._objects, ()
        if self._generation == self._session.generation:
            for each in objects:
                self._session.cryptoki.destroy(each)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.destroy()

    def __repr__(self) -> str:
        return f"EphemeralPair({self.curve})"
