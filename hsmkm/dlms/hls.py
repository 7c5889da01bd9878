"""High-level security: each side answers the other's challenge (IEC 62056-5-3 clause 5.7.4; challenges 8 to 64 octets).

| mechanism | f(challenge) of the side that answers; title and challenge are `own` and `peer` as that side sees them   |
|-----------|----------------------------------------------------------------------------------------------------------|
| 3, 4      | MD5, SHA-1 of peer challenge || secret                                                                   |
| 5         | SC || IC || GMAC over SC || GAK || peer challenge, IV = own title || IC                                  |
| 6         | SHA-256 of secret || own title || peer title || peer challenge || own challenge                          |
| 7         | ECDSA over own title || peer title || peer challenge || own challenge, raw r || s                        |

A token of mechanism 5 uses up a counter value of its own: a sender takes n for it and n + 1 for the APDU that carries
it. A verifier demands no order between the two.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from hsmkm.dlms import curves
from hsmkm.dlms.ciphering import (
    AUTHENTICATION,
    TAG_OCTETS,
    CipherKey,
    InvocationCounter,
    initialisation_vector,
    security_control,
)
from hsmkm.dlms.types import Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError, RefusedError

SHORTEST_CHALLENGE = 8
LONGEST_CHALLENGE = 64
TOKEN_OCTETS = 1 + 4 + TAG_OCTETS


class DigestAlgorithm(StrEnum):
    """Digests of the mechanisms with a shared secret, by the names that hashlib has for them."""

    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"


DIGESTS = {
    Mechanism.HLS_MD5: DigestAlgorithm.MD5,
    Mechanism.HLS_SHA1: DigestAlgorithm.SHA1,
    Mechanism.HLS_SHA256: DigestAlgorithm.SHA256,
}


class Password(Protocol):
    """The secret of mechanism 1, which the AARQ carries in clear."""

    def reveal(self) -> bytes:
        """Give the password."""
        ...


class SecretDigest(Protocol):
    """The holder of the secret of mechanisms 3, 4 and 6; the secret stays with it."""

    def digest(self, algorithm: DigestAlgorithm, before: bytes, after: bytes) -> bytes:
        """Give the digest of before || secret || after."""
        ...


class Signer(Protocol):
    """The holder of a private key for digital signatures: SHA-256 on P-256, SHA-384 on P-384."""

    def sign(self, data: bytes) -> bytes:
        """Give r || s over the data; 64 or 96 octets."""
        ...


class Verifier(Protocol):
    """The other side's public key for digital signatures."""

    def verify(self, data: bytes, raw: bytes) -> None:
        """Check r || s over the data; raises IntegrityError."""
        ...


@dataclass(frozen=True, slots=True)
class Handshake:
    """What both sides said in the clear, as one side sees it; titles may be absent in mechanisms 3 and 4."""

    own_title: SystemTitle | None
    peer_title: SystemTitle | None
    own_challenge: bytes = field(repr=False)
    peer_challenge: bytes = field(repr=False)

    def turned(self) -> Handshake:
        """As the other side sees it."""
        return Handshake(self.peer_title, self.own_title, self.peer_challenge, self.own_challenge)

    def titles(self) -> tuple[SystemTitle, SystemTitle]:
        """Give our title and the peer's; raises IntegrityError where one is missing."""
        if self.own_title is None or self.peer_title is None:
            raise IntegrityError("the mechanism needs the system titles of both sides")
        return self.own_title, self.peer_title

    def everything(self) -> bytes:
        """Own title || peer title || peer challenge || own challenge, as mechanisms 6 and 7 take it."""
        own, peer = self.titles()
        return own.octets + peer.octets + self.peer_challenge + self.own_challenge


class Proof(Protocol):
    """One mechanism with its keys: answers challenges and checks answers."""

    def answer(self, handshake: Handshake) -> bytes:
        """Give f(peer challenge)."""
        ...

    def check(self, handshake: Handshake, answer: bytes) -> int | None:
        """Check the peer's f(own challenge) and give the counter value it used up, if any; raises IntegrityError."""
        ...


@dataclass(frozen=True, slots=True)
class GmacProof:
    """Mechanism 5."""

    key: CipherKey = field(repr=False)
    suite: SecuritySuite
    counter: InvocationCounter

    def answer(self, handshake: Handshake) -> bytes:
        """Give the token, which uses up one counter value; 17 octets."""
        own, _ = handshake.titles()
        return token(self.key, self.suite, own, self.counter.next(), handshake.peer_challenge)

    def check(self, handshake: Handshake, answer: bytes) -> int | None:
        """Check the peer's token and give its counter; raises IntegrityError."""
        _, peer = handshake.titles()
        return verify(self.key, self.suite, peer, handshake.own_challenge, answer)


@dataclass(frozen=True, slots=True)
class DigestProof:
    """Mechanisms 3, 4 and 6."""

    mechanism: Mechanism
    secret: SecretDigest = field(repr=False)

    def answer(self, handshake: Handshake) -> bytes:
        """Give the digest; 16, 20 or 32 octets."""
        algorithm = DIGESTS[self.mechanism]
        if self.mechanism is Mechanism.HLS_SHA256:
            return self.secret.digest(algorithm, b"", handshake.everything())
        return self.secret.digest(algorithm, handshake.peer_challenge, b"")

    def check(self, handshake: Handshake, answer: bytes) -> int | None:
        """Compare in constant time with what the peer must answer; raises IntegrityError."""
        if not hmac.compare_digest(self.answer(handshake.turned()), answer):
            raise IntegrityError("the answer to the challenge does not prove the secret")
        return None


@dataclass(frozen=True, slots=True)
class SignatureProof:
    """Mechanism 7."""

    suite: SecuritySuite
    signer: Signer = field(repr=False)
    verifier: Verifier = field(repr=False)

    def answer(self, handshake: Handshake) -> bytes:
        """Give r || s; raises RefusedError if the signer's key is of another suite."""
        raw = self.signer.sign(handshake.everything())
        if len(raw) != self.suite.point_octets:
            raise RefusedError(f"the signing key is not of suite {int(self.suite)}")
        return raw

    def check(self, handshake: Handshake, answer: bytes) -> int | None:
        """Check the peer's signature; raises IntegrityError."""
        curves.check_signature(self.suite, answer)
        self.verifier.verify(handshake.turned().everything(), answer)
        return None


def token(key: CipherKey, suite: SecuritySuite, title: SystemTitle, counter: int, challenge: bytes) -> bytes:
    """Answer the other side's challenge as `title` by mechanism 5; 17 octets."""
    control = security_control(suite, AUTHENTICATION)
    tag = key.protect(initialisation_vector(title, counter), control, b"", challenge)
    return bytes([control]) + counter.to_bytes(4, "big") + tag


def verify(key: CipherKey, suite: SecuritySuite, title: SystemTitle, challenge: bytes, answer: bytes) -> int:
    """Check `title`'s answer to our challenge by mechanism 5 and give its counter; raises IntegrityError."""
    control = security_control(suite, AUTHENTICATION)
    if len(answer) != TOKEN_OCTETS or answer[0] != control:
        raise IntegrityError("the answer to the challenge is not a GMAC token of the security suite")
    counter = int.from_bytes(answer[1:5], "big")
    key.unprotect(initialisation_vector(title, counter), control, b"", challenge + answer[5:])
    return counter


def challenge_fits(challenge: bytes) -> bool:
    """Whether a challenge has 8 to 64 octets."""
    return SHORTEST_CHALLENGE <= len(challenge) <= LONGEST_CHALLENGE
