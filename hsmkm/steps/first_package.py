"""Four eyes on whom keys are given to: the first package with keys for a recipient needs an approval.

A recipient is its name, role, system title and the public keys that packages are wrapped for. One with another key is
another recipient, whoever registered it; a renewed certificate of the same key is not. An approval that was added is
found by itself, so that a service and a renewal give keys to whom they may, and stop before whom they may not.
"""

from __future__ import annotations

from hsmkm.packages.approval import digest_of
from hsmkm.pki.certificates import parse_certificate, public_key
from hsmkm.pki.slots import SLOTS
from hsmkm.steps.approve import check_approval, require_approval
from hsmkm.steps.issuances import key_digest
from hsmkm.steps.party import Party
from hsmkm.store import approvals, certificates, parties
from hsmkm.store.approvals import OPEN, USED
from hsmkm.store.store import Transaction

ACTION = "package-first-recipient"
_SLOTS = tuple(one.name for one in SLOTS if one.profile == "key-agreement")


def check_recipient(party: Party, name: str, approval: str = "") -> None:
    """Raise PolicyError where keys may not be given to a recipient, before anything is wrapped for it."""
    if party.settings.policy.is_listed(ACTION):
        with party.store.read() as tx:
            request = _request(tx, name)
            found = _found(tx, name, request, approval)
        if found is not None:
            check_approval(party, ACTION, name, request, found)


def require_recipient(tx: Transaction, party: Party, name: str, approval: str = "") -> None:
    """Use up the approval of a recipient, in the transaction of the first package for it; raises as the check does."""
    if party.settings.policy.is_listed(ACTION):
        request = _request(tx, name)
        found = _found(tx, name, request, approval)
        if found is not None:
            require_approval(tx, party, ACTION, name, request, found)


def _request(tx: Transaction, name: str) -> dict[str, object]:
    """Say who a recipient is; its keys by the SHA-256 of their SubjectPublicKeyInfo."""
    recipient = parties.require(tx, name)
    keys = {}
    for slot in _SLOTS:
        record = certificates.get(tx, recipient.certificates[slot]) if slot in recipient.certificates else None
        if record is not None:
            keys[slot] = key_digest(public_key(parse_certificate(record.der))).hex()
    return {"role": recipient.role, "system_title": (recipient.system_title or b"").hex().upper(), "keys": keys}


def _found(tx: Transaction, name: str, request: dict[str, object], approval: str) -> str | None:
    """Name the approval to be used, empty where there is none; None where the recipient was approved before."""
    known = approvals.matching(tx, ACTION, name, digest_of(request))
    if any(one.state == USED for one in known):
        return None
    return approval or next((one.id for one in known if one.state == OPEN), "")
