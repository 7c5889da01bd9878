"""Moving a party to another token: what the new home takes in.

The archive must be signed by the certificate that the operator names, which is this party's own by name and chain, and
made for a key of this token. Its keys are unwrapped into this token and sealed here; then every row of the old store
goes into this one in a single transaction, with MACs of this token: whole, or not at all. The old store and its signed
manifest are kept beside, for the records of that time. What comes from a standby archive is of an earlier time: every
invocation counter is raised above all that the old home can have used since.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cryptography import x509

from hsmkm.durable_file import replace_file
from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.packages.archive import DATABASE, FORMER, KEYS, Archive, ArchivePurpose, open_archive
from hsmkm.packages.container import open_container
from hsmkm.packages.moving import MovingKey, MovingKeys, parse_moving
from hsmkm.packages.receive import AgreementKey
from hsmkm.packages.transport import open_package_key
from hsmkm.pki.certificates import fingerprint, holder, read_certificates
from hsmkm.pki.slots import SLOTS
from hsmkm.steps.approve import require_approval
from hsmkm.steps.backup import told
from hsmkm.steps.certify import own_chain, own_path, trust_of
from hsmkm.steps.migrate import ACTION
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.recover import queue_spent
from hsmkm.steps.results import Backup
from hsmkm.store import carry, recovery, schema
from hsmkm.store.key_set import StoredKey
from hsmkm.store.snapshot import digest
from hsmkm.store.store import Transaction
from hsmkm.token.types import Sealed

TAKEN = "token-migrate-taken"
STAGING = ".migrate"
COPIED = ("packages", "receipts", "records", "approvals", "models", FORMER)


def take_over(party: Party, path: Path, signer: Path, approval: str | None = None) -> Backup:
    """Take in an archive that the old home of this party made for this token; `signer` is a PEM file of its signer.

    Raises RefusedError with every reason where it is not of this party, not for this token, or this home is in use
    already; IntegrityError where anything in it is not as it was signed. Nothing is changed then.
    """
    (expected, *_) = read_certificates(signer)
    with open_archive(path) as opened:
        ours = _accepted(party, opened, expected)
        staging = party.home / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        try:
            opened.extract(staging)
            with _sealed_here(party, opened, ours, staging) as sealed:
                _take(party, opened, staging, sealed, approval)
            _keep_files(party, opened, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return told(path, opened.manifest)


def _accepted(party: Party, opened: Archive, expected: x509.Certificate) -> AgreementKey:
    """Believe the archive, and give the key of ours that it was made for."""
    own, manifest, signed = party.settings.party, opened.manifest, opened.signed
    reasons = []
    if fingerprint(signed.signer) != fingerprint(expected):
        reasons.append("it is signed by another certificate than the one that was named")
    if holder(signed.signer) != own.name:
        reasons.append(f"its signer is {holder(signed.signer)!r}, and this party is {own.name!r}")
    try:
        trust_of(party).check(signed.signer, signed.chain, "package-signing", utc_now(), signed=signed.signed_at)
    except RefusedError as error:
        reasons += error.reasons
    if manifest.purpose is ArchivePurpose.BACKUP:
        reasons.append("it is a backup, which is for the token that made it: hsmkm store restore")
    said = manifest.party
    if (said.name, said.role, said.system_title.hex().upper()) != (own.name, own.role, own.system_title):
        reasons.append("it is of another party")
    if manifest.store.schema != schema.HEAD:
        reasons.append(f"its store has the schema {manifest.store.schema}: use one version of hsmkm for both homes")
    found = next((key for key in _own_keys(party) if fingerprint(key.certificate) == manifest.recipient), None)
    if found is None:
        reasons.append("it was made for another key-agreement certificate than ours")
    if reasons or found is None:
        raise RefusedError("the archive is not taken", reasons, hint="nothing was changed")
    return found


def _own_keys(party: Party) -> Iterator[AgreementKey]:
    for one in SLOTS:
        if one.profile == "key-agreement" and own_path(party, one.name).is_file():
            yield AgreementKey(one.name, own_chain(party, one.name)[0])


class _SealedKeys:
    """The keys as they lie under this token's storage key, by identity and role, in a file until they are stored."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute(
            "CREATE TABLE sealed (identity BLOB, role TEXT, number INTEGER, wrapped BLOB, PRIMARY KEY (identity, role))"
        )

    def put(self, key: MovingKey, sealed: Sealed) -> None:
        """Keep one; RefusedError where it was given before."""
        row = key.identity, key.role.value, sealed.storage_key, sealed.wrapped
        try:
            self._connection.execute("INSERT INTO sealed VALUES (?, ?, ?, ?)", row)
        except sqlite3.IntegrityError as error:
            raise RefusedError(f"the key {key.identity.hex()} is given twice", hint="make a new archive") from error

    def rewrap(self, key: StoredKey, _suite: int) -> Sealed:
        """Give a key's wrapping here; IntegrityError where no package gave it."""
        query = "SELECT number, wrapped FROM sealed WHERE identity = ? AND role = ?"
        row = self._connection.execute(query, (key.identity, key.role.value)).fetchone()
        if row is None:
            raise IntegrityError(f"no package carries the key {key.identity.hex()}", hint="make a new archive")
        return Sealed(*row)


@contextmanager
def _sealed_here(party: Party, opened: Archive, ours: AgreementKey, staging: Path) -> Iterator[_SealedKeys]:
    of_store = digest(staging / DATABASE)
    with closing(sqlite3.connect(staging / "sealed.db", isolation_level=None)) as connection:
        connection.execute("BEGIN")
        sealed = _SealedKeys(connection)
        for path in sorted((staging / KEYS).glob("*")):
            moving = _opened(opened, path.read_bytes(), of_store)
            header, info = moving.header, moving.recipient_info
            with open_package_key(party.vault, ours.label, ours.certificate, info, header.ukm()) as package_key:
                for key in moving.keys:
                    with party.vault.unwrap(package_key, key.wrapped, key.role, key.suite) as handle:
                        sealed.put(key, party.vault.seal(handle))
        yield sealed


def _opened(opened: Archive, data: bytes, of_store: bytes) -> MovingKeys:
    """Read one package of keys, which the signer of the archive made for this very store."""
    signed = open_container(data)
    moving = parse_moving(signed.content)
    same = fingerprint(signed.signer) == fingerprint(opened.signed.signer)
    if not same or moving.store != of_store or moving.header.recipient != opened.manifest.party:
        raise IntegrityError("a package of keys is not of this archive", hint="make a new archive")
    return moving


def _take(party: Party, opened: Archive, staging: Path, sealed: _SealedKeys, approval: str | None) -> None:
    name, manifest = party.settings.party.name, opened.manifest
    detail: dict[str, object] = {
        "purpose": manifest.purpose.value,
        "instance": manifest.store.instance.hex(),
        "audit": manifest.store.audit_sequence,
        "hash": manifest.store.audit_hash.hex(),
        "store": digest(staging / DATABASE).hex(),
    }
    with carry.reading(staging / DATABASE, None) as source, party.store.begin(TAKEN, name, detail) as tx:
        require_approval(tx, party, ACTION, name, detail, approval)
        carry.check_new(tx)
        carry.carry(source, tx, sealed.rewrap)
        if manifest.purpose is ArchivePurpose.STANDBY:
            _raise_all(tx, party.settings.policy.max_counter_jump)


def _raise_all(tx: Transaction, jump: int) -> None:
    """Raise every counter, sequence and generation above what the old home can have used since the archive."""
    if tx.before is None:
        raise RefusedError("this home's store has no state yet", hint="hsmkm token init")
    highest = tx.before.counter_highest + jump
    _, spent = recovery.recover(tx, recovery.Loss(tx.before.advance, -1, jump, jump, highest))
    if spent:
        queue_spent(tx, frozenset(spent))


def _keep_files(party: Party, opened: Archive, staging: Path) -> None:
    """Take packages, receipts and models along, and keep the old store with its manifest."""
    instance = opened.manifest.store.instance.hex()[:16]
    for name in COPIED:
        for source in sorted((staging / name).glob("*")):
            target = party.home / name / source.name
            if not target.exists():
                replace_file(target, source.read_bytes())
    folder = party.home / FORMER
    folder.mkdir(mode=0o700, exist_ok=True)
    (staging / DATABASE).rename(folder / f"{instance}.db")
    replace_file(folder / f"{instance}.p7m", opened.container)
