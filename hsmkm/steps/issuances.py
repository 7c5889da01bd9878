"""What is recorded of a certificate before its signature: its serial number and digest, and what its key is for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.pki.certificates import holder, parse_certificate, public_key, public_octets
from hsmkm.pki.lint import Linted, Plan
from hsmkm.pki.requests import subject_name
from hsmkm.store import certificates, certified_keys
from hsmkm.store.certificates import Issuance
from hsmkm.store.store import StoredRow, Transaction

SERIAL_OCTETS = 20


def key_digest(key: ec.EllipticCurvePublicKey) -> bytes:
    """Name a public key by the SHA-256 of its SubjectPublicKeyInfo, 32 octets."""
    return hashlib.sha256(public_octets(key)).digest()


def record_planned(tx: Transaction, linted: Linted) -> None:
    """Record a certificate that is about to be signed.

    Raises RefusedError where the issuer used its serial number before, or its key is certified for something else.
    """
    record_many_planned(tx, [(linted.plan, linted.tbs)])


def record_many_planned(tx: Transaction, planned: Sequence[tuple[Plan, bytes]]) -> list[StoredRow]:
    """Do the same for many, each given with the octets that are to be signed; what completes them later is given."""
    claim_older(tx)
    keys = [(hashlib.sha256(plan.key).digest(), (plan.profile.name, plan.subject)) for plan, _ in planned]
    certified_keys.claim_many(tx, keys)
    return certificates.record_issued(tx, *(_issuance(plan, tbs) for plan, tbs in planned))


def _issuance(plan: Plan, tbs: bytes) -> Issuance:
    issuer = subject_name(plan.subject) if plan.issuer is None else plan.issuer.subject
    return Issuance(
        issuer=issuer.rfc4514_string(),
        serial=plan.serial.to_bytes(SERIAL_OCTETS, "big"),
        profile=plan.profile.name,
        subject=plan.subject,
        tbs_digest=hashlib.sha256(tbs).digest(),
        not_before=plan.not_before,
        not_after=plan.not_after,
    )


def claim_older(tx: Transaction) -> None:
    """Settle what the keys are for that an older program certified, once; the first certificate of each counts."""
    for der, profile in certified_keys.unclaimed(tx):
        certificate = parse_certificate(der)
        subject, digest = holder(certificate), key_digest(public_key(certificate))
        if certified_keys.why_not(tx, digest, profile, subject) is None:
            certified_keys.claim(tx, digest, profile, subject)
