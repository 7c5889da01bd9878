"""Registers officers, with their roles and certificates, and keeps what they signed.

An officer's certificate is pinned as a party's is: a valid chain gives nobody a say. The first two officers are
registered by whoever sets the home up; from then on it takes an approval, where the policy lists anything at all.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cryptography import x509

from hsmkm.config import OFFICER_CHANGE
from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError, RefusedError
from hsmkm.pki.certificates import fingerprint, is_name, parse_certificate, public_key, read_certificates
from hsmkm.steps.approve import PROFILE, officer_trust, read_signed, require_approval, take
from hsmkm.steps.certify import entry, keep
from hsmkm.steps.party import Party
from hsmkm.store import certificates, officers
from hsmkm.store.approvals import Approval
from hsmkm.store.certificates import Source
from hsmkm.store.officers import OFFICER, REGISTERED, REMOVED, ROLES, Officer
from hsmkm.store.store import Transaction


def add_officer(
    party: Party, name: str, roles: tuple[str, ...], certificate: Path | None, approval: str | None = None
) -> Officer:
    """Register a name with its roles, or change what is registered; an officer's certificate says the same name.

    Raises InputError for bad words, RefusedError with every reason, PolicyError where it needs an approval.
    """
    unknown = sorted(set(roles) - set(ROLES))
    if unknown or not roles:
        raise InputError(f"unknown role {', '.join(unknown) or 'none'!r}", hint=f"use any of {', '.join(ROLES)}")
    if not is_name(name):
        raise InputError(f"{name!r} is not a name of 1 to 64 printable characters")
    if OFFICER in roles and certificate is None:
        raise InputError("an officer needs a certificate", hint="give its file with --certificate")
    leaf = read_certificates(certificate)[0] if certificate is not None else None
    made = Officer(name, tuple(role for role in ROLES if role in roles), fingerprint(leaf) if leaf else b"")
    request = {"roles": list(made.roles), "certificate": made.fingerprint.hex(), "state": REGISTERED}
    with party.store.begin("officer-add", name, request) as tx:
        if leaf is not None:
            _check(tx, party, name, leaf)
        require_approval(tx, party, OFFICER_CHANGE, name, request, approval)
        _keep_one(tx, name, made)
        if leaf is not None:
            keep(tx, entry(leaf, PROFILE, name, Source.PARTY))
        officers.put(tx, made)
    return made


def remove_officer(party: Party, name: str, approval: str | None = None) -> Officer:
    """Take every role from a name; RefusedError where nobody is registered under it."""
    request = {"roles": [], "certificate": "", "state": REMOVED}
    with party.store.begin("officer-remove", name, {}) as tx:
        known = officers.get(tx, name)
        if known is None or known.state == REMOVED:
            raise RefusedError(f"nobody is registered as {name}", hint="hsmkm officer list")
        require_approval(tx, party, OFFICER_CHANGE, name, request, approval)
        removed = replace(known, state=REMOVED)
        _keep_one(tx, name, removed)
        officers.put(tx, removed)
    return removed


def add_approval(party: Party, file: Path) -> Approval:
    """Take a signed request: check it, record it, and keep the file in HOME/approvals."""
    data = read_signed(file)
    with party.store.begin("approval-add", file.name, {}) as tx:
        found = take(tx, party, data)
    kept = party.home / "approvals" / f"{found.id}.{len(found.decisions)}.p7m"
    replace_file(kept, data)
    return found


def _keep_one(tx: Transaction, name: str, after: Officer) -> None:
    """Refuse to leave a home without an officer: nobody could name another."""
    others = [one for one in officers.listing(tx) if one.name != name and one.has(OFFICER)]
    known = officers.get(tx, name)
    if known is not None and known.has(OFFICER) and not others and not after.has(OFFICER):
        raise RefusedError(f"{name} is the last officer", hint="add another officer first")


def _check(tx: Transaction, party: Party, name: str, leaf: x509.Certificate) -> None:
    """Refuse a certificate that is not this officer's, is not valid now, or whose key is another's."""
    reasons = officer_trust(tx, party, leaf, name)
    for other in officers.listing(tx):
        record = certificates.get(tx, other.fingerprint) if other.fingerprint and other.name != name else None
        if record is not None and public_key(parse_certificate(record.der)) == public_key(leaf):
            reasons.append(f"its key is that of {other.name}")
    if reasons:
        raise RefusedError(f"the certificate of {name} is not accepted", reasons, hint="nothing was changed")
