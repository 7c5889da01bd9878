"""An EC key in the token that cryptography's builders take for a private key.

cryptography documents such subclasses for keys in an HSM. The digest is made in the host and signed with raw ECDSA.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NoReturn, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import Hash

from hsmkm.errors import IntegrityError, PolicyError, TokenRefusedError
from hsmkm.token import curves

if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

    from hsmkm.token.vault import Vault


class _Signer(ec.EllipticCurvePrivateKey):
    """What every signing key in the token has in common: where its object handle comes from is the subclass's."""

    def __init__(self, vault: Vault, label: str, public: ec.EllipticCurvePublicKey) -> None:
        self._vault = vault
        self._label = label
        self._public = public
        self._octets = curves.field_octets(curves.name_of(public))

    @abstractmethod
    def _find(self) -> int:
        """Return the object handle."""

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Hash in the host, sign in the token; the DER of r and s. UnsupportedAlgorithm for anything but ECDSA."""
        if not isinstance(signature_algorithm, ec.ECDSA):
            raise UnsupportedAlgorithm("a key in the token signs with ECDSA only")
        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, utils.Prehashed):
            digest = bytes(data)
        else:
            hasher = Hash(algorithm)
            hasher.update(memoryview(data))
            digest = hasher.finalize()
        raw = self._sign_digest(digest)
        halves = raw[: self._octets], raw[self._octets :]
        return utils.encode_dss_signature(*(int.from_bytes(half) for half in halves))

    def sign_raw(self, data: bytes) -> bytes:
        """Sign as DLMS does: r || s, with SHA-256 on P-256 (64 octets), SHA-384 on P-384 (96 octets)."""
        hasher = Hash(curves.hash_algorithm(curves.name_of(self._public)))
        hasher.update(data)
        return self._sign_digest(hasher.finalize())

    def _sign_digest(self, digest: bytes) -> bytes:
        session = self._vault.session
        raw = session.cryptoki.sign(session.profile.mechanisms.ecdsa, self._find(), digest)
        if len(raw) != 2 * self._octets:
            raise TokenRefusedError(f"the token signed with {len(raw)} octets instead of {2 * self._octets}")
        return raw

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve of the key."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """The bits of the curve's field."""
        return self._public.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Refuse: a signing key agrees on nothing."""
        del algorithm, peer_public_key
        raise PolicyError(f"the key {self._label} only signs")

    def private_numbers(self) -> NoReturn:
        """Refuse: the key does not leave the token."""
        raise PolicyError(f"the key {self._label} does not leave the token")

    def private_bytes(self, encoding: Any, format: Any, encryption_algorithm: Any) -> NoReturn:  # noqa: A002, ANN401 - the base class's names
        """Refuse: the key does not leave the token."""
        del encoding, format, encryption_algorithm
        raise PolicyError(f"the key {self._label} does not leave the token")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._label})"


class TokenSigner(_Signer):
    """The signing key of a label. After a reconnection the key is found again, and its public key compared."""

    def __init__(self, vault: Vault, label: str) -> None:
        super().__init__(vault, label, vault.public_key(label))
        self._identity = vault.key_pairs.identity(label)
        self._generation = 0
        self._number = 0
        self._find()

    def _find(self) -> int:
        """Return the object handle, found anew and compared in each session generation."""
        session = self._vault.session
        if self._generation != session.generation:
            generation = session.generation
            number = self._vault.key_pairs.private(self._label, "sign")
            same = self._vault.key_pairs.identity(self._label) == self._identity
            if not same or self._vault.public_key(self._label) != self._public:
                raise IntegrityError(f"the key {self._label} is not what it was", hint="the token was exchanged")
            self._number, self._generation = number, generation
        return self._number


class BirthSigner(_Signer):
    """A key-agreement key while it is born: it signs the request for its own certificate, and nothing ever after."""

    def __init__(self, vault: Vault, label: str, public: ec.EllipticCurvePublicKey, number: int) -> None:
        super().__init__(vault, label, public)
        self._number = number

    def _find(self) -> int:
        return self._number
