"""What each public key was certified for: one profile and one holder, for good.

A key certified for signature and agreement both would undo the separation of usages, and one under two names would
speak for both. The first certificate of a key settles what it is for; a renewal of the same passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from sqlalchemy import select

from hsmkm.errors import RefusedError
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.certificates import Source
from hsmkm.store.schema import certificates, certified_keys
from hsmkm.store.store import Transaction

Purpose: TypeAlias = tuple[str, str]
"""A profile and its holder."""

COLUMNS = ("digest", "profile", "subject")
ROWS = AuthenticatedTable("hsmkm certified key/1", certified_keys, ("digest",), COLUMNS)


def claim(tx: Transaction, digest: bytes, profile: str, subject: str) -> None:
    """Settle what a key is for; `digest` is the SHA-256 of its SubjectPublicKeyInfo (32 octets).

    Raises RefusedError where it was certified for another profile or another subject.
    """
    claim_many(tx, [(digest, (profile, subject))])


def claim_many(tx: Transaction, wanted: Sequence[tuple[bytes, Purpose]]) -> None:
    """Settle what many keys are for, given by their digests; raises RefusedError as `claim`."""
    known = purposes(tx, [digest for digest, _ in wanted])
    new: dict[bytes, Purpose] = {}
    for digest, purpose in wanted:
        found = in_the_way(known.get(digest) or new.setdefault(digest, purpose), purpose)
        if found is not None:
            raise RefusedError(f"the key asked for {purpose[1]} {found}", hint="make a key pair for each certificate")
    settled = sorted((digest, *purpose) for digest, purpose in new.items())
    ROWS.insert_many(tx, ({"digest": key, "profile": profile, "subject": holder} for key, profile, holder in settled))


def why_not(tx: Transaction, digest: bytes, profile: str, subject: str) -> str | None:
    """Say what a key was certified for before, where that is not this; None where nothing is in the way."""
    purpose = profile, subject
    return in_the_way(purposes(tx, [digest]).get(digest, purpose), purpose)


def purposes(tx: Transaction, digests: Sequence[bytes]) -> dict[bytes, Purpose]:
    """Find what those of the keys are for that were certified before."""
    return {row["digest"]: (row["profile"], row["subject"]) for row in ROWS.fetch_many(tx, "digest", digests)}


def in_the_way(found: Purpose, wanted: Purpose) -> str | None:
    """Say what a key is certified for, where that is not what is wanted."""
    return None if found == wanted else f"is certified for {found[0]} of {found[1]} already"


def unclaimed(tx: Transaction) -> Iterator[tuple[bytes, str]]:
    """Give DER and profile of what was certified here before the first key was claimed: by an older program."""
    if tx.one(select(certified_keys.c.digest).limit(1)) is not None:
        return
    ours = certificates.c.source.in_((Source.ISSUED.value, Source.OWN.value))
    columns = certificates.c.der, certificates.c.profile
    for row in tx.all(select(*columns).where(ours).order_by(certificates.c.not_before)):
        yield row["der"], row["profile"]
