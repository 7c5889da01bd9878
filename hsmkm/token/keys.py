"""Handles of session keys and the ciphering of APDUs with them. The Vault makes both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pkcs11 import Attribute

from hsmkm.errors import IntegrityError, PolicyError, ProtocolError, TokenUnreachableError
from hsmkm.token.attributes import Role
from hsmkm.token.template import View, ffi, wipe
from hsmkm.token.types import KEY_OCTETS, KeyRole, SessionRole, Use

if TYPE_CHECKING:
    from types import TracebackType

    from hsmkm.token.session import TokenSession

_CIPHERS = frozenset({KeyRole.GUEK, KeyRole.GBEK, SessionRole.DEDICATED, SessionRole.EPHEMERAL})
IV_OCTETS = 12
TAG_OCTETS = 12
_TOKEN_TAG_BITS = 8 * TAG_OCTETS
_AUTHENTICATION = 0x10
_ENCRYPTION = 0x20
_COMPRESSION = 0x80
_SUITE = 0x0F
_FIRST_ROOM = 512
_MAX_OCTETS = 1 << 20


class KeyHandle:
    """A key in the token, for one session generation; leaving the context destroys it."""

    __slots__ = ("_object", "_session", "generation", "octets", "role", "use")

    def __init__(self, session: TokenSession, number: int, role: Role, use: Use, octets: int) -> None:
        self._session = session
        self._object = number
        self.generation = session.generation
        self.role = role
        self.use = use
        self.octets = octets

    def number(self) -> int:
        """Return the object handle; TokenUnreachableError once the key or its session generation is gone."""
        if self.generation != self._session.generation:
            raise TokenUnreachableError(
                f"the handle of a {self.role} key is of an earlier session generation", hint="open the key again"
            )
        if not self._object:
            raise TokenUnreachableError(f"the session's {self.role} key is destroyed", hint="open the key again")
        return self._object

    def destroy(self) -> None:
        """Destroy the key in the token; a key that is gone, itself or with its generation, stays so."""
        number, self._object = self._object, 0
        if number and self.generation == self._session.generation:
            self._session.cryptoki.destroy(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.destroy()

    def __repr__(self) -> str:
        return f"KeyHandle({self.role}, {self.use.value}, generation {self.generation})"

    def __reduce__(self) -> str:
        raise TypeError("a key handle does not leave the process")


class CipherKey:
    """Protects APDUs with AES-GCM under a GUEK, GBEK, dedicated or ephemeral key, with GAK as authenticated data.

    The initialisation vector is the sender's system title and invocation counter, 12 octets; the tag has 12 octets.
    Bit 4 of the security control octet asks for authentication, bit 5 for encryption. `header` is what follows GAK in
    the AAD (general-ciphering's header fields; empty otherwise). GAK is read once into C memory, which close() wipes;
    the two handles stay their owner's. One thread uses it at a time.
    """

    def __init__(self, session: TokenSession, key: KeyHandle, gak: KeyHandle) -> None:
        _check_ciphers(key, gak)
        self._session = session
        self._key = key
        self._gak_octets = gak.octets
        self._fitting = frozenset(suite for suite, octets in KEY_OCTETS.items() if octets == gak.octets)
        self._iv = ffi.new("unsigned char[]", IV_OCTETS)
        self._parameters = ffi.new("CK_GCM_PARAMS *")
        self._parameters.pIv, self._parameters.ulIvLen = self._iv, IV_OCTETS
        self._parameters.ulIvBits, self._parameters.ulTagBits = 8 * IV_OCTETS, _TOKEN_TAG_BITS
        self._mechanism = ffi.new("CK_MECHANISM *")
        self._mechanism.mechanism = session.profile.mechanisms.aes_gcm
        self._mechanism.pParameter = self._parameters
        self._mechanism.ulParameterLen = ffi.sizeof("CK_GCM_PARAMS")
        self._open = True
        self._aad: Any = ffi.new("unsigned char[]", 1 + gak.octets)
        told = session.cryptoki.read_into(gak.number(), Attribute.VALUE, self._aad + 1, gak.octets)
        if told != gak.octets:  # what is missing would be zeros, and authenticate nothing
            wipe(self._aad)
            raise IntegrityError(f"the token shows {told} octets of a GAK of {gak.octets}")
        self._make_room(_FIRST_ROOM)

    def _make_room(self, octets: int) -> None:
        """Make the buffers hold this many octets beside GAK and tag; GAK moves, and its old place is wiped."""
        if octets > _MAX_OCTETS:
            raise ProtocolError(f"an APDU of more than {_MAX_OCTETS} octets", hint="no meter sends or takes one")
        room = 1 + self._gak_octets + octets
        grown = ffi.new("unsigned char[]", room)
        ffi.memmove(grown, self._aad, 1 + self._gak_octets)
        wipe(self._aad)
        self._aad, self._aad_view = grown, ffi.buffer(grown)
        self._parameters.pAAD = grown
        self._room = octets
        self._out_room = octets + 2 * TAG_OCTETS
        self._out = ffi.new("unsigned char[]", self._out_room)
        self._out_view: View = ffi.buffer(self._out)

    def protect(self, iv: bytes, security_control: int, header: bytes, data: bytes) -> bytes:
        """Return ciphertext and tag, the ciphertext alone, or the 12-octet tag alone, as the security control says.

        The caller has reserved the invocation counter: an IV is used once under a key.
        """
        mode = self._prepare(iv, security_control, header, data)
        if mode == _AUTHENTICATION:
            return self._encrypt(b"")
        sealed = self._encrypt(data)
        return sealed if mode & _AUTHENTICATION else sealed[: len(data)]

    def unprotect(self, iv: bytes, security_control: int, header: bytes, data: bytes) -> bytes:
        """Return the plaintext of ciphertext and tag, of the ciphertext alone, or of plain data and tag.

        Raises IntegrityError if the tag is wrong or missing. Encryption alone proves nothing about the data.
        """
        if security_control & _AUTHENTICATION and len(data) < TAG_OCTETS:
            raise IntegrityError("a protected APDU is shorter than its tag", hint="it was cut, or is not protected")
        if security_control & (_AUTHENTICATION | _ENCRYPTION) == _AUTHENTICATION:
            plain, tag = data[:-TAG_OCTETS], data[-TAG_OCTETS:]
            self._prepare(iv, security_control, header, plain)
            self._decrypt(tag)
            return plain
        mode = self._prepare(iv, security_control, header, data)
        if mode & _AUTHENTICATION:
            return self._decrypt(data)
        return self._encrypt(data)[: len(data)]  # counter mode is its own inverse, and there is no tag to check

    def _prepare(self, iv: bytes, security_control: int, header: bytes, data: bytes) -> int:
        """Fill in IV and AAD; the mode bits. AAD is SC, GAK, header, and the plain data where it is not encrypted."""
        if not self._open:
            raise TokenUnreachableError("the cipher key is closed", hint="open the keys again")
        mode = security_control & (_AUTHENTICATION | _ENCRYPTION)
        if not mode or security_control & _COMPRESSION or not 0 <= security_control <= 0xFF:  # noqa: PLR2004 - an octet
            raise ProtocolError(f"security control {security_control:#x} asks for no protection known here")
        if len(iv) != IV_OCTETS:
            raise ProtocolError(f"an initialisation vector of {len(iv)} octets instead of {IV_OCTETS}")
        if security_control & _SUITE not in self._fitting:
            raise ProtocolError(self._misfit(security_control & _SUITE))
        if len(header) + len(data) > self._room:
            self._make_room(len(header) + len(data))
        ffi.memmove(self._iv, iv, IV_OCTETS)
        if mode == _ENCRYPTION:
            self._parameters.ulAADLen = 0
            return mode
        extra = header + data if mode == _AUTHENTICATION else header
        start = 1 + self._gak_octets
        self._aad[0] = security_control
        if extra:
            self._aad_view[start : start + len(extra)] = extra
        self._parameters.ulAADLen = start + len(extra)
        return mode

    def _misfit(self, suite: int) -> str:
        if suite not in KEY_OCTETS:
            return f"there is no security suite {suite}"
        return f"security suite {suite} does not fit keys of {self._gak_octets} octets"

    def _encrypt(self, data: bytes) -> bytes:
        length = self._session.cryptoki.encrypt(self._mechanism, self._key.number(), data, self._out, self._out_room)
        if length != len(data) + TAG_OCTETS:
            raise IntegrityError(f"the token answered {length} octets for {len(data)} and a tag")
        return self._out_view[0:length]

    def _decrypt(self, data: bytes) -> bytes:
        length = self._session.cryptoki.decrypt(self._mechanism, self._key.number(), data, self._out, self._out_room)
        if length != len(data) - TAG_OCTETS:  # more of it would be of an earlier APDU
            raise IntegrityError(f"the token answered {length} octets for {len(data)} with a tag")
        return self._out_view[0:length]

    def close(self) -> None:
        """Wipe GAK; the key protects nothing any more."""
        self._open = False
        wipe(self._aad)
        wipe(self._out)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CipherKey({self._key!r})"


def _check_ciphers(key: KeyHandle, gak: KeyHandle) -> None:
    """Refuse keys of other roles, in transport, or of two suites. An ephemeral key also works at its birth."""
    if key.role not in _CIPHERS or gak.role is not KeyRole.GAK:
        raise PolicyError(
            f"an APDU is not protected with a {key.role} and a {gak.role} key",
            hint="it takes a GUEK, GBEK, dedicated or ephemeral key, and a GAK",
        )
    at_work = key.use is Use.IN_USE or (key.role is SessionRole.EPHEMERAL and key.use is Use.BIRTH)
    if not at_work or gak.use is not Use.IN_USE:
        raise PolicyError("keys in transport protect nothing", hint="open the keys for use")
    if key.octets != gak.octets:
        raise PolicyError(f"the {key.role} and the GAK are of different suites", hint="open keys of one key set")
