"""What a party trusts, as its folder and its store say together."""

from __future__ import annotations

from hsmkm.errors import IntegrityError
from hsmkm.pki.certificates import fingerprint
from hsmkm.pki.profiles import KNOWN_ARCS
from hsmkm.pki.trust import TrustStore
from hsmkm.steps.party import Party
from hsmkm.store import certificates
from hsmkm.store.certificates import Source
from hsmkm.store.store import Transaction


def trust_in(party: Party, tx: Transaction) -> TrustStore:
    """Load anchors, intermediates and CRLs; IntegrityError where the anchors' file holds one that was never placed."""
    own = party.settings.pki.policy_arc
    trust = TrustStore.load(party.home / "trust", (*([own] if own else []), *KNOWN_ARCS))
    known = placed(tx)
    if any(fingerprint(anchor) not in known for anchor in trust.anchors):
        raise IntegrityError(
            "trust/anchors.pem holds an anchor that was never placed",
            hint="place it with hsmkm pki trust, or restore the file",
        )
    return trust


def placed(tx: Transaction) -> set[bytes]:
    """Give the SHA-256 of every anchor that was placed, and of the root that was made here."""
    made = certificates.listing(tx, source=Source.OWN, profile="root")
    return {item.fingerprint for item in (*certificates.listing(tx, source=Source.ANCHOR), *made)}
