"""HLS authentication, mechanism 5 (GMAC): f(challenge) = SC || IC || GMAC(SC || GAK || challenge).

The IV is the sender's system title || IC, so the token uses up a counter value of its own: a sender takes n for the
token and n + 1 for the APDU that carries it. A verifier demands no order between the two.
"""

from __future__ import annotations

from hsmkm.dlms.ciphering import (
    AUTHENTICATION,
    TAG_OCTETS,
    CipherKey,
    initialisation_vector,
    security_control,
)
from hsmkm.dlms.types import SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError

SHORTEST_CHALLENGE = 8
LONGEST_CHALLENGE = 64
TOKEN_OCTETS = 1 + 4 + TAG_OCTETS


def token(key: CipherKey, suite: SecuritySuite, title: SystemTitle, counter: int, challenge: bytes) -> bytes:
    """Answer the other side's challenge as `title`; 17 octets."""
    control = security_control(suite, AUTHENTICATION)
    tag = key.protect(initialisation_vector(title, counter), control, b"", challenge)
    return bytes([control]) + counter.to_bytes(4, "big") + tag


def verify(key: CipherKey, suite: SecuritySuite, title: SystemTitle, challenge: bytes, answer: bytes) -> int:
    """Check `title`'s answer to our challenge and give its counter; raises IntegrityError."""
    control = security_control(suite, AUTHENTICATION)
    if len(answer) != TOKEN_OCTETS or answer[0] != control:
        raise IntegrityError("the answer to the challenge is not a GMAC token of the security suite")
    counter = int.from_bytes(answer[1:5], "big")
    key.unprotect(initialisation_vector(title, counter), control, b"", challenge + answer[5:])
    return counter


def challenge_fits(challenge: bytes) -> bool:
    """Whether a challenge has 8 to 64 octets."""
    return SHORTEST_CHALLENGE <= len(challenge) <= LONGEST_CHALLENGE
