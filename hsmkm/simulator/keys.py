"""Software keys and counters: what a meter has in its flash, and what tests use in place of a token."""

from __future__ import annotations

import hashlib
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from hsmkm.dlms.ciphering import AUTHENTICATION, BOTH, ENCRYPTION, HIGHEST_COUNTER, TAG_OCTETS, CipherKey
from hsmkm.dlms.hls import DigestAlgorithm
from hsmkm.dlms.types import SecuritySuite
from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.simulator import key_pairs

_FIRST_BLOCK = (2).to_bytes(4, "big")


class SoftwareKeys:
    """A GUEK with its GAK in host memory; fulfils `hsmkm.dlms.ciphering.CipherKey`."""

    __slots__ = ("_gak", "_guek")

    def __init__(self, guek: bytes, gak: bytes) -> None:
        self._guek = guek
        self._gak = gak

    def protect(self, iv: bytes, security_control: int, header: bytes, data: bytes) -> bytes:
        """Give ciphertext || tag, ciphertext, or the tag alone, as `CipherKey` says."""
        mode = security_control & BOTH
        associated = self._associated(security_control, header, data)
        if mode == ENCRYPTION:
            return self._counter_mode(iv, data)
        if mode == AUTHENTICATION:
            return AESGCM(self._guek).encrypt(iv, b"", associated)[:TAG_OCTETS]
        if mode == BOTH:
            return AESGCM(self._guek).encrypt(iv, data, associated)[: len(data) + TAG_OCTETS]
        raise RefusedError("an APDU is protected by authentication, encryption or both")

    def unprotect(self, iv: bytes, security_control: int, header: bytes, data: bytes) -> bytes:
        """Give the plaintext; raises IntegrityError on a bad tag."""
        mode = security_control & BOTH
        if mode == ENCRYPTION:
            return self._counter_mode(iv, data)
        if mode == 0 or len(data) < TAG_OCTETS:
            raise IntegrityError("the APDU carries no authentication tag")
        body, tag = data[:-TAG_OCTETS], data[-TAG_OCTETS:]
        associated = self._associated(security_control, header, body)
        decryptor = Cipher(algorithms.AES(self._guek), modes.GCM(iv, tag, min_tag_length=TAG_OCTETS)).decryptor()
        decryptor.authenticate_additional_data(associated)
        try:
            plain = decryptor.update(body if mode == BOTH else b"") + decryptor.finalize()
        except InvalidTag:
            raise IntegrityError("the authentication tag does not fit") from None
        return plain if mode == BOTH else body

    def _associated(self, security_control: int, header: bytes, data: bytes) -> bytes:
        plain = data if security_control & BOTH == AUTHENTICATION else b""
        return bytes([security_control]) + self._gak + header + plain

    def _counter_mode(self, iv: bytes, data: bytes) -> bytes:
        encryptor = Cipher(algorithms.AES(self._guek), modes.CTR(iv + _FIRST_BLOCK)).encryptor()
        return encryptor.update(data) + encryptor.finalize()


class SoftwareCounter:
    """An invocation counter that lives as long as the process."""

    def __init__(self, value: int = 1) -> None:
        self.value = value

    def next(self) -> int:
        """Give the next value; raises RefusedError when they are used up."""
        if self.value > HIGHEST_COUNTER:
            raise RefusedError("the invocation counter is used up", hint="renew the key")
        self.value += 1
        return self.value - 1


class SoftwareReceiveCounter:
    """The lowest acceptable counter of a sender, for as long as the process lives."""

    def __init__(self, lowest: int = 0) -> None:
        self.lowest = lowest

    def accept(self, value: int) -> None:
        """Take an authenticated counter value; raises IntegrityError for one that may be a replay."""
        if value < self.lowest:
            raise IntegrityError("the invocation counter is below the lowest acceptable one")
        self.lowest = value + 1


class SoftwareSecret:
    """An LLS or HLS secret in host memory; fulfils `hsmkm.dlms.hls.Password` and `SecretDigest`."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Give the password."""
        return self._value

    def digest(self, algorithm: DigestAlgorithm, before: bytes, after: bytes) -> bytes:
        """Give the digest of before || secret || after."""
        return hashlib.new(algorithm.value, before + self._value + after, usedforsecurity=False).digest()


class SoftwareDedicatedKey:
    """A dedicated key in host memory with the GAK; fulfils `hsmkm.dlms.settings.DedicatedKey`."""

    __slots__ = ("_value", "cipher")

    def __init__(self, value: bytes, gak: bytes) -> None:
        self._value = value
        self.cipher = SoftwareKeys(value, gak)

    def reveal(self) -> bytes:
        """Give the value."""
        return self._value


class SoftwareWrapping:
    """A master key in host memory, and the GAK for the keys under it; fulfils `hsmkm.dlms.general_keys.KeyWrapping`."""

    __slots__ = ("_gak", "_master")

    def __init__(self, master: bytes, gak: bytes) -> None:
        self._master = master
        self._gak = gak

    def fresh(self) -> tuple[bytes, CipherKey]:
        """Make a key and give it wrapped, and to use."""
        key = secrets.token_bytes(len(self._master))
        return aes_key_wrap(self._master, key), SoftwareKeys(key, self._gak)

    def unwrap(self, wrapped: bytes) -> CipherKey:
        """Open a wrapped key; raises IntegrityError."""
        try:
            return SoftwareKeys(aes_key_unwrap(self._master, wrapped), self._gak)
        except (InvalidUnwrap, ValueError):
            raise IntegrityError("the key is not wrapped under this master key") from None


class SoftwareAgreement:
    """A key-agreement key pair in host memory, and the GAK; fulfils `hsmkm.dlms.general_keys.KeyAgreement`."""

    __slots__ = ("_gak", "_private", "_suite")

    def __init__(self, suite: SecuritySuite, private: ec.EllipticCurvePrivateKey, gak: bytes) -> None:
        self._suite = suite
        self._private = private
        self._gak = gak

    def ephemeral(self, peer: bytes, other_info: bytes) -> tuple[bytes, CipherKey]:
        """Agree by a new pair with the peer's static point."""
        private = key_pairs.generate(self._suite)
        return key_pairs.point_of(private.public_key()), self._derived(private, peer, other_info)

    def from_ephemeral(self, point: bytes, other_info: bytes) -> CipherKey:
        """Agree by the static key with the peer's ephemeral point."""
        return self._derived(self._private, point, other_info)

    def static(self, peer: bytes, other_info: bytes) -> CipherKey:
        """Agree by the static key with the peer's static point."""
        return self._derived(self._private, peer, other_info)

    def _derived(self, private: ec.EllipticCurvePrivateKey, peer: bytes, other_info: bytes) -> CipherKey:
        public = key_pairs.public_of(self._suite, peer)
        return SoftwareKeys(key_pairs.derive(self._suite, private, public, other_info), self._gak)
