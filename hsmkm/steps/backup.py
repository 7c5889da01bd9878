"""A home in one file, and a home out of it: the database, settings, certificates, trust, packages and receipts.

What is not in it: the token, which its vendor's means keep, PINs, and the TLS key, the one key that lies in a file. So
there is no key in clear in it. Others work on while it is made. A home is restored on an empty host, where its token is
already: the manifest must be signed by a key of that very token, and the settings come last, so that there is a home
when everything is in place, and none before.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hsmkm.config import Settings, load_settings
from hsmkm.durable_file import sync_folder
from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.packages.archive import (
    ALONE,
    DATABASE,
    FORMER,
    SETTINGS,
    Archive,
    ArchivePurpose,
    Manifest,
    member,
    open_archive,
    write_archive,
)
from hsmkm.packages.container import Signed, sign_content
from hsmkm.packages.content import Peer
from hsmkm.packages.fields import time_text
from hsmkm.packages.registry import PACKAGE_SIGNING
from hsmkm.packages.send import Signatory
from hsmkm.pki.certificates import public_key, read_certificates
from hsmkm.pki.slots import P256, P384, Slot
from hsmkm.steps.approve import require_approval
from hsmkm.steps.certify import AUTHORITY_PROFILES, own_path
from hsmkm.steps.deliver import PARTIAL, outbox, signatory
from hsmkm.steps.party import Party, hands_of, token_settings, utc_now
from hsmkm.steps.results import Backup
from hsmkm.store.sealing import upgrade
from hsmkm.store.snapshot import describe, key_numbers
from hsmkm.store.store import Store
from hsmkm.store.transfer import from_file
from hsmkm.token.keyring import KINDS
from hsmkm.token.session import TokenSession, open_session
from hsmkm.token.vault import Vault

FOLDERS = ("certificates", "trust", "packages", "receipts", "records", "approvals", "models", FORMER)
"""The folders of a home that a backup takes; a token, PINs, locks and the TLS key lie in none of them."""

COPY = ".backup"
RESTORE = "store-restore"
RESTORE_TOKEN = "restore the token first, by its vendor's means"  # noqa: S105 - a hint
STAGING = ".restore"
MOVING = "moving"
TOKEN = "token"  # noqa: S105 - the name of a folder


def backup(party: Party, path: Path) -> Backup:
    """Write a backup of this home to a new file; the store may be in use."""
    with party.store.begin("store-backup", path.name, {}):
        pass
    with outbox(party), copied(party) as sources:
        return archive(party, path, ArchivePurpose.BACKUP, sources)


@contextmanager
def copied(party: Party) -> Iterator[dict[str, Path]]:
    """Copy the database as it is now, and name every file of the home that is kept; within the `outbox`."""
    folder = party.home / COPY
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        party.store.copy_to(folder / DATABASE)
        yield {DATABASE: folder / DATABASE, SETTINGS: party.home / SETTINGS, **_kept_files(party.home)}
    finally:
        shutil.rmtree(folder)


def _kept_files(home: Path) -> dict[str, Path]:
    found = (path for name in FOLDERS for path in sorted((home / name).rglob("*")))
    kept = [path for path in found if path.is_symlink() or not path.is_dir()]
    return {str(path.relative_to(home)): path for path in kept if not _is_temporary(path)}


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") or path.name.endswith(PARTIAL)


def archive(
    party: Party, path: Path, purpose: ArchivePurpose, sources: dict[str, Path], recipient: bytes = b""
) -> Backup:
    """Measure the files, sign their list in the token, and write them."""
    settings, database = party.settings.party, sources[DATABASE]
    files = tuple(member(name, sources[name]) for name in (*ALONE, *sorted(sources.keys() - set(ALONE))))
    peer = Peer(settings.name, settings.role, bytes.fromhex(settings.system_title))
    manifest = Manifest(purpose, utc_now(), peer, recipient, describe(database), files)
    signer = archivist(party)
    signed = sign_content(manifest.encode(), signer.signer, signer.certificate, signer.chain, manifest.created)
    write_archive(path, signed, manifest, sources)
    return told(path, manifest)


def archivist(party: Party) -> Signatory:
    """Take the package-signing key on P-384 where this party has one, else that on P-256."""
    stronger = own_path(party, Slot("package-signing", P384).name).is_file()
    return signatory(party, P384 if stronger else P256)


def told(path: Path, manifest: Manifest) -> Backup:
    """Tell what an archive is."""
    octets = sum(one.octets for one in manifest.files)
    sequence = manifest.store.audit_sequence
    return Backup(path, manifest.party.name, manifest.purpose.value, len(manifest.files), octets, sequence)


@contextmanager
def open_folder(home: Path) -> Iterator[Path]:
    """Give a worker a folder where there is no home yet."""
    yield home


def restore(home: Path, path: Path, actor: str, approval: str | None = None) -> Backup:
    """Make a home out of a backup, in a folder with nothing in it but the token's own.

    Raises InputError and IntegrityError for a file that is no backup as it was signed, RefusedError where there is a
    home, or the token has not the keys that the store is under, PolicyError where the restored policy wants an approval
    by the restored officers; nothing is in place then. What was ended early is done again from the start.
    """
    with open_archive(path) as opened:
        if opened.manifest.purpose is not ArchivePurpose.BACKUP:
            raise RefusedError(f"{path.name} is no backup, it is for another token", hint="hsmkm token migrate --from")
        _check_empty(home)
        staging = _fresh_staging(home)
        try:
            opened.extract(staging / "home")
            settings = load_settings(staging / "home")
            _check_party(opened, settings)
            with open_session(token_settings(replace(settings, home=home))) as session:
                vault = Vault(session)
                _check_token(opened, vault, staging / "home" / DATABASE)
                _check_authorities(vault, staging / "home" / "certificates")
                _record(opened, settings, (session, vault, actor), approval)
            _put_on_server(settings, staging / "home" / DATABASE)
            _put_in_place(home, staging)
        finally:
            if not (staging / MOVING).exists():
                shutil.rmtree(staging, ignore_errors=True)
    return told(path, opened.manifest)


def _check_empty(home: Path) -> None:
    moving = (home / STAGING / MOVING).exists()
    allowed = {TOKEN, STAGING, *((*FOLDERS, DATABASE) if moving else ())}
    found = sorted(path.name for path in home.iterdir()) if home.is_dir() else []
    strange = [name for name in found if name not in allowed]
    if strange:
        raise RefusedError(
            f"{home} is not empty",
            [f"there is {name}" for name in strange[:20]],
            hint="restore into a new folder that holds the token's folder alone",
        )


def _fresh_staging(home: Path) -> Path:
    """Take away what a restore that was ended early left, and begin anew."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (*FOLDERS, DATABASE) if (home / STAGING / MOVING).exists() else ():
        _remove(home / name)
    shutil.rmtree(home / STAGING, ignore_errors=True)
    (home / STAGING).mkdir(mode=0o700)
    return home / STAGING


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_party(opened: Archive, settings: Settings) -> None:
    named, own = opened.manifest.party, settings.party
    if (named.name, named.role, named.system_title.hex().upper()) != (own.name, own.role, own.system_title):
        raise IntegrityError("the backup's settings are of another party than its manifest", hint="do not use it")


def _check_token(opened: Archive, vault: Vault, database: Path) -> None:
    """See that the backup is of this token: one of its keys signed it, and it has the keys that the store is under."""
    check_own_signature(vault, opened.signed)
    for number in sorted(key_numbers(database)):
        for kind in KINDS:
            vault.keyring.number(kind, number)


def _check_authorities(vault: Vault, folder: Path) -> None:
    """See that the token has the key of each authority that the backup has a certificate of."""
    reasons = []
    for name in AUTHORITY_PROFILES:
        if (path := folder / f"{name}.pem").is_file():
            key, label = public_key(read_certificates(path)[0]), f"ca:{name}"
            if not vault.has_ec_key(label) or vault.public_key(label) != key:
                reasons.append(f"the key of {name} is not in it")
    if reasons:
        raise RefusedError("the token is not that of these authorities", reasons, hint=RESTORE_TOKEN)


def _record(
    opened: Archive, settings: Settings, at_work: tuple[TokenSession, Vault, str], approval: str | None
) -> None:
    """Record in the restored store that it was restored, with the approval that its own policy wants.

    The anchor is not asked here: it refuses an older store when the home is opened, and this record does not move it.
    """
    session, vault, actor = at_work
    name, digest = settings.party.name, hashlib.sha256(opened.container).hexdigest()
    request: dict[str, object] = {"manifest": digest, "created": time_text(opened.manifest.created)}
    url = f"sqlite:{settings.home / DATABASE}"
    upgrade(url, vault, actor, None)
    with Store.open(url, vault, actor) as store, store.begin(RESTORE, name, request) as tx:
        party = Party(settings, session, vault, store, actor, hands_of(settings, vault))
        require_approval(tx, party, RESTORE, name, request, approval)


def _put_on_server(settings: Settings, database: Path) -> None:
    """Put the store where the settings say that it lies, if that is no file: into an empty database.

    What a restore that was ended early put there is replaced.
    """
    if not settings.store_url.startswith("sqlite:"):
        from_file(database, settings.store_url, RESTORE)
        database.unlink()


def check_own_signature(vault: Vault, signed: Signed) -> None:
    """Raise RefusedError unless a package-signing key of this token made a signature."""
    key = public_key(signed.signer)
    if not any(vault.has_ec_key(label) and vault.public_key(label) == key for label in PACKAGE_SIGNING):
        raise RefusedError("the backup was not signed by this token", hint=RESTORE_TOKEN)


def _put_in_place(home: Path, staging: Path) -> None:
    (staging / MOVING).touch()
    sync_folder(staging)
    for path in sorted((staging / "home").iterdir(), key=lambda path: (path.name == SETTINGS, path.name)):
        path.rename(home / path.name)
        sync_folder(home)
    (staging / MOVING).unlink()
