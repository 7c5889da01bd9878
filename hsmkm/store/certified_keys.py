"""What each public key was certified for: one profile and one holder, for good.

A key certified for signature and agreement both would undo the separation of usages, and one under two names would
speak for both. The first certificate of a key settles what it is for; a renewal of the same passes.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select

from hsmkm.errors import RefusedError
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.certificates import Source
from hsmkm.store.schema import certificates, certified_keys
from hsmkm.store.store import Transaction

COLUMNS = ("digest", "profile", "subject")
ROWS = AuthenticatedTable("hsmkm certified key/1", certified_keys, ("digest",), COLUMNS)


def claim(tx: Transaction, digest: bytes, profile: str, subject: str) -> None:
    """Settle what a key is for; `digest` is the SHA-256 of its SubjectPublicKeyInfo (32 octets).

    Raises RefusedError where it was certified for another profile or another subject.
    """
    found = why_not(tx, digest, profile, subject)
    if found is not None:
        raise RefusedError(f"the key asked for {subject} {found}", hint="make a key pair for each certificate")
    if ROWS.fetch(tx, digest=digest) is None:
        ROWS.insert(tx, {"digest": digest, "profile": profile, "subject": subject})


def why_not(tx: Transaction, digest: bytes, profile: str, subject: str) -> str | None:
    """Say what a key was certified for before, where that is not this; None where nothing is in the way."""
    row = ROWS.fetch(tx, digest=digest)
    if row is None or (row["profile"], row["subject"]) == (profile, subject):
        return None
    return f"is certified for {row['profile']} of {row['subject']} already"


def unclaimed(tx: Transaction) -> Iterator[tuple[bytes, str]]:
    """Give DER and profile of what was certified here before the first key was claimed: by an older program."""
    if tx.one(select(certified_keys.c.digest).limit(1)) is not None:
        return
    ours = certificates.c.source.in_((Source.ISSUED.value, Source.OWN.value))
    columns = certificates.c.der, certificates.c.profile
    for row in tx.all(select(*columns).where(ours).order_by(certificates.c.not_before)):
        yield row["der"], row["profile"]
