"""Answers that no honest meter in good order gives: each kind has a name, under which operators count it.

They are refused like everything else that does not fit. Their names are for whoever watches a fleet: one of them may be
a fault of a meter or of a network, many of them are somebody at work.
"""

from __future__ import annotations

from hsmkm.errors import IntegrityError, ProtocolError


class RepeatedCounterError(IntegrityError):
    """An answer carries a counter that was used before, or a lower one: it was recorded, or the counter went back."""

    suspicion = "repeated-counter"


class ReplayedAnswerError(IntegrityError):
    """An answer is that of another transaction."""

    suspicion = "replayed-response"


class OtherSuiteError(IntegrityError):
    """An APDU is of another security suite than its association."""

    suspicion = "wrong-suite"


class BadPointError(IntegrityError):
    """A public key is no point of the suite's curve."""

    suspicion = "bad-point"


class BadSignatureError(IntegrityError):
    """A signature has an r or s of zero, or beyond the order of the suite's curve, or the wrong length."""

    suspicion = "signature-out-of-range"


class BadChallengeError(ProtocolError):
    """A challenge is our own sent back, or has fewer than 8 or more than 64 octets."""

    suspicion = "bad-challenge"


KINDS = tuple(
    kind.suspicion
    for kind in (
        RepeatedCounterError,
        ReplayedAnswerError,
        OtherSuiteError,
        BadPointError,
        BadSignatureError,
        BadChallengeError,
    )
)
