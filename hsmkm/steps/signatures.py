"""What a worker does where certificates are issued in bulk: it checks a batch of drafts and signs them in its token.

A worker imports this and little else of the steps: it has neither store nor peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from hsmkm.pki.authority import Authority, Draft
from hsmkm.pki.lint import Linted
from hsmkm.steps.hands import Hand
from hsmkm.token.signer import TokenSigner


@dataclass(frozen=True, slots=True)
class Terms:
    """What the certificates of a run share: the label of the authority's key, its certificate in DER, and the moment.

    `without_end`: where the profile allows that, they have no well-defined end.
    """

    label: str
    issuer: bytes
    now: datetime
    without_end: bool


def sign_drafts(hand: Hand, terms: Terms, drafts: Sequence[Draft]) -> list[bytes]:
    """Check drafts, which are recorded, and sign them: each signature in DER, verified under the authority's key."""
    signer = TokenSigner(hand.vault, terms.label)
    authority = Authority(signer, x509.load_der_x509_certificate(terms.issuer), _refuse)
    return list(authority.sign_drafts(drafts, terms.now, without_end=terms.without_end))


def _refuse(_linted: Linted) -> None:
    """Refuse to record: whoever has the store did it before."""
    raise TypeError("a worker signs what is recorded, and has no store")
