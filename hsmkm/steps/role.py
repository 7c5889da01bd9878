"""What each role may do, where `policy.roles` is on: asked before every change of the store, in its transaction.

An officer administers and approves; an operator does the daily work; a service carries packages, receipts and readings;
an auditor reads and checks, and changes nothing. Whoever does several things has several roles. The actor is who the
login or `--actor` says: a role keeps honest people to their work and names them in the audit log. What must not be done
by one person alone is a matter of approvals, which are signed.
"""

from __future__ import annotations

from hsmkm.errors import PolicyError
from hsmkm.store import officers
from hsmkm.store.officers import OFFICER, OPERATOR, SERVICE
from hsmkm.store.store import Transaction

COUNTING = ""
"""The action of a change that only moves counters and leases: what speaking with a meter takes."""

_ADMINISTRATION = (
    *("officer-add", "officer-remove", "party-add", "pki-trust", "pki-authority", "pki-ceremony", "pki-revoke"),
    *("model-import-keys", "token-", "store-"),
)
_SHARED = ("approval-", "pki-", "audit-", "officer-request")
_SERVICE = (
    *("package-take", "package-refuse", "package-receipt", "meter-read", "meters-read", "generation-in-force"),
    *("generation-attempt", "release-unanswered", "apdu-forward", "refused: "),
)
"""Beginnings of the names of actions in the audit log; what none of them begins is an operator's work."""


def roles_for(action: str) -> tuple[str, ...]:
    """Name the roles that may do an action; one of them is enough."""
    if action == COUNTING or action.startswith(_SERVICE):
        return (OPERATOR, SERVICE)
    if action.startswith(_ADMINISTRATION):
        return (OFFICER,)
    return (OFFICER, OPERATOR) if action.startswith(_SHARED) else (OPERATOR,)


def permit_by_role(tx: Transaction, actor: str, action: str) -> None:
    """Raise PolicyError unless a role of the actor allows the action; all is allowed until there is an officer."""
    allowed = roles_for(action)
    known = officers.get(tx, actor)
    if known is not None and known.has(*allowed):
        return
    if not any(one.has(OFFICER) for one in officers.listing(tx)):
        return
    what = f"{action} is" if action else "speaking with meters is"
    has = f"is {' and '.join(known.roles)}" if known is not None and known.has(*officers.ROLES) else "has no role here"
    raise PolicyError(f"{actor} {has}: {what} for {' or '.join(allowed)}", hint="hsmkm officer list; hsmkm officer add")
