"""Moving a party to another token, of another make: what leaves the old home.

One archive leaves it: the store as it is at one moment, and packages with every key that it holds, wrapped for the
key-agreement key of the new token, so that the keys go from token to token. Before, everything in the store is checked
against its MACs and the audit chain, since the new token cannot do that. A migration retires this home in the
transaction that says so, before the first octet is written: two homes never use one key under one system title. A
standby archive leaves this home at work; who takes it over later raises every counter.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.packages.archive import DATABASE, KEYS, ArchivePurpose
from hsmkm.packages.container import sign_content
from hsmkm.packages.content import MAX_LIFETIME, Peer, Purpose
from hsmkm.packages.moving import MAX_KEYS, MovingKey, MovingKeys
from hsmkm.packages.send import Recipient, Signatory, check_recipient, new_header, suite_reasons
from hsmkm.packages.transport import wrap_package_key
from hsmkm.pki.certificates import fingerprint, public_key, read_certificates
from hsmkm.pki.slots import SLOTS
from hsmkm.steps import rotate
from hsmkm.steps.approve import require_approval
from hsmkm.steps.backup import archive, archivist, copied
from hsmkm.steps.certify import trust_of
from hsmkm.steps.deliver import outbox
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.results import Backup
from hsmkm.store import audit, carry, renewals, retirement
from hsmkm.store.check import check
from hsmkm.store.key_set import StoredKey
from hsmkm.store.snapshot import digest
from hsmkm.store.store import Transaction
from hsmkm.token.keys import KeyHandle
from hsmkm.token.types import Sealed, Use

ACTION, STANDBY = "token-migrate", "token-migrate-standby"


def migrate(party: Party, to: Path, out: Path, standby: bool, approval: str | None = None) -> Backup:  # noqa: FBT001 - a worker's call has no names
    """Write an archive for the token of a key-agreement certificate (a PEM file), which belongs to this party too.

    Without `standby` this home is retired first, for good; given again for the same certificate, the archive is written
    again. Raises RefusedError while renewals or a rotation are not finished, IntegrityError where anything in the store
    is not as it was written; nothing is changed then.
    """
    receiver = _recipient(party, to)
    _announce(party, receiver, standby=standby, approval=approval)
    purpose = ArchivePurpose.STANDBY if standby else ArchivePurpose.MIGRATION
    with outbox(party), copied(party) as sources:
        packages = sources[DATABASE].parent / KEYS
        packages.mkdir()
        for path in _key_packages(party, receiver, sources[DATABASE], packages):
            sources[f"{KEYS}/{path.name}"] = path
        made = archive(party, out, purpose, sources, fingerprint(receiver.certificate))
        shutil.rmtree(packages)
    return made


def _recipient(party: Party, path: Path) -> Recipient:
    """Take the certificate of the new token: a key-agreement certificate of this party, of another token's key."""
    leaf, *chain = read_certificates(path)
    own = party.settings.party
    peer = Peer(own.name, own.role, bytes.fromhex(own.system_title))
    found = Recipient(peer, leaf, tuple(chain))
    check_recipient(trust_of(party), peer, found, Purpose.MIGRATION, utc_now())
    labels = [one.name for one in SLOTS if one.profile == "key-agreement" and party.vault.has_ec_key(one.name)]
    if any(party.vault.public_key(label) == public_key(leaf) for label in labels):
        raise RefusedError(f"{path} is of this very token", hint="give the key-agreement.pem of the new home")
    return found


def _announce(party: Party, receiver: Recipient, *, standby: bool, approval: str | None) -> None:
    """Record what is about to leave, and retire this home where it does not go on."""
    name, to = party.settings.party.name, fingerprint(receiver.certificate)
    with party.store.read() as tx:
        _check_quiet(tx, standby=standby)
        retired_for = retirement.recipient(tx)
    if retired_for is not None and (standby or retired_for != to):
        raise RefusedError("this home is retired, for another certificate", hint="give the certificate of then")
    request: dict[str, object] = {"recipient": to.hex(), "standby": str(standby).lower()}
    with party.store.begin(STANDBY if standby else ACTION, name, request, although_retired=True) as tx:
        if retired_for is None:
            require_approval(tx, party, ACTION, name, request, approval)
            _check_quiet(tx, standby=standby)
        if retired_for is None and not standby:
            retirement.retire(tx, to)


def _check_quiet(tx: Transaction, *, standby: bool) -> None:
    """See that nothing is half done, and everything as it was written."""
    if rotate.unfinished(tx):
        raise RefusedError("a rotation of the keys is not finished", hint="hsmkm token rotate")
    open_ones = [] if standby else renewals.unfinished(tx)
    if open_ones:
        reasons = [f"renewal {one.id} of meter {one.system_title.hex().upper()} is {one.state}" for one in open_ones]
        raise RefusedError("the keys of meters are in doubt", reasons, hint="hsmkm resolve --all")


def _key_packages(party: Party, receiver: Recipient, database: Path, folder: Path) -> Iterator[Path]:
    """Write a package for every so many keys of a copy of the store, after checking all of it."""
    sender, of_store = archivist(party), digest(database)
    with carry.reading(database, party.vault) as tx:
        problems = [*audit.verify(tx), *check(tx)]
        if problems:
            raise IntegrityError(f"the store has {len(problems)} problem(s), the first in {problems[0]}", "not moved")
        keys = _once(carry.sealed_keys(tx))
        number = 0
        while found := list(islice(keys, MAX_KEYS)):
            number += 1
            path = folder / f"{number:06}.p7m"
            path.write_bytes(_package(party, sender, receiver, number, of_store, found))
            yield path


def _once(keys: Iterator[tuple[StoredKey, int, int]]) -> Iterator[tuple[StoredKey, int, int]]:
    seen: set[tuple[bytes, str]] = set()
    for key, suite, number in keys:
        name = key.identity, key.role.value
        if name not in seen:
            seen.add(name)
            yield key, suite, number


def _package(
    party: Party,
    sender: Signatory,
    receiver: Recipient,
    number: int,
    of_store: bytes,
    keys: list[tuple[StoredKey, int, int]],
) -> bytes:
    reasons = suite_reasons(
        {suite for _, suite, _ in keys}, public_key(sender.certificate), public_key(receiver.certificate)
    )
    if reasons:
        raise RefusedError("the keys of the parties are too weak for these meters", reasons)
    lifetime = MAX_LIFETIME - timedelta(days=1)
    header = new_header(Purpose.MIGRATION, number, sender.peer, receiver.peer, utc_now(), lifetime)
    with party.vault.generate_package_key() as package_key:
        info = wrap_package_key(party.vault, package_key, receiver.certificate, header.ukm())
        moving = tuple(_moving(party, package_key, *each) for each in keys)
    content = MovingKeys(header, info, of_store, moving).encode()
    return sign_content(content, sender.signer, sender.certificate, sender.chain, header.created)


def _moving(party: Party, package_key: KeyHandle, key: StoredKey, suite: int, number: int) -> MovingKey:
    with party.vault.open(key.role, Sealed(number, key.wrapped), suite, Use.TRANSPORT) as handle:
        return MovingKey(key.identity, key.role, suite, party.vault.wrap(package_key, handle))
