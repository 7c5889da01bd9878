"""One file that holds a home's files, with a signed list of them: a backup, or what moves a party to another token.

It is a tar of the plainest kind (ustar, POSIX.1-1988): first `manifest.p7m`, CMS SignedData over JSON, and then the
files that the manifest names, in its order, each with its length and SHA-256. So `tar -x` and `openssl cms -verify`
read it without hsmkm. There is one form for one content: every header is compared with the one that the manifest
asks for, and none is believed. A path is relative, within the folders that a home has, and of plain characters.

    {"format": "hsmkm-backup/1", "purpose": "backup" | "migration" | "standby", "created": RFC 3339,
     "party": {"name", "role", "system_title"}, "recipient": hex of a certificate's SHA-256, or empty,
     "store": {"schema", "instance": hex, "epoch", "audit": n, "hash": hex},
     "files": [{"path", "octets", "sha256": hex}]}
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import IO

from hsmkm.durable_file import sync_folder
from hsmkm.errors import Fault, InputError, IntegrityError, RefusedError
from hsmkm.packages.container import MAX_CONTAINER, Signed, open_container
from hsmkm.packages.content import Peer
from hsmkm.packages.fields import Fields, time_text
from hsmkm.packages.strict_json import MAX_INTEGER, canonical, parse
from hsmkm.store.snapshot import Snapshot

FORMAT = "hsmkm-backup/1"
MANIFEST = "manifest.p7m"
DATABASE = "store.db"
SETTINGS = "hsmkm.toml"
KEYS = "keys"
"""The folder of the key packages in an archive that moves a party; a home has no such folder."""

FORMER = "former"
"""The folder of the stores that a home was moved out of, with the records of that time."""

FOLDERS = ("certificates", "trust", "trust/crl", "packages", "receipts", "records", "approvals", "models", FORMER, KEYS)
ALONE = (DATABASE, SETTINGS)
MAX_MANIFEST = 48 << 20
MAX_FILES = 200_000
MAX_OCTETS = 8**11 - 1
"""The longest file that a ustar header can tell of, 8 GiB."""

INSTANCE_OCTETS = 16
SHA256_OCTETS = 32
_BLOCK = 512
_PIECE = 1 << 20
_END = bytes(2 * _BLOCK)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}", re.ASCII)


class ArchivePurpose(StrEnum):
    """What an archive is for: the same token, another token at once, or another token when this one is lost."""

    BACKUP = "backup"
    MIGRATION = "migration"
    STANDBY = "standby"


@dataclass(frozen=True, slots=True)
class Member:
    """A file: its path in the home, its length in octets and its SHA-256."""

    path: str
    octets: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive says of itself; `recipient` is the SHA-256 of the certificate its keys are for, or empty."""

    purpose: ArchivePurpose
    created: datetime
    party: Peer
    recipient: bytes
    store: Snapshot
    files: tuple[Member, ...]

    def encode(self) -> bytes:
        """Return the content octets; raise InputError for what `parse_manifest` would refuse."""
        document = {
            "format": FORMAT,
            "purpose": self.purpose.value,
            "created": time_text(self.created),
            "party": {
                "name": self.party.name,
                "role": self.party.role,
                "system_title": self.party.system_title.hex().upper(),
            },
            "recipient": self.recipient.hex(),
            "store": {
                "schema": self.store.schema,
                "instance": self.store.instance.hex(),
                "epoch": self.store.epoch,
                "audit": self.store.audit_sequence,
                "hash": self.store.audit_hash.hex(),
            },
            "files": [{"path": one.path, "octets": one.octets, "sha256": one.sha256.hex()} for one in self.files],
        }
        data = canonical(document)
        parse_manifest(data)
        return data


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest; raise InputError with every fault of its form."""
    faults: list[str] = []
    fields = Fields(parse(data, MAX_MANIFEST, "the manifest"), "", faults)
    fields.exactly(("format", "purpose", "created", "party", "recipient", "store", "files"))
    fields.one_of("format", (FORMAT,))
    purpose = ArchivePurpose(fields.one_of("purpose", [one.value for one in ArchivePurpose]))
    recipient = fields.octets("recipient", 0, SHA256_OCTETS)
    if (purpose is ArchivePurpose.BACKUP) == bool(recipient):
        fields.wrong("recipient", f"does not go with the purpose {purpose}")
    party, store = fields.inner("party"), fields.inner("store")
    party.exactly(("name", "role", "system_title"))
    peer = Peer(party.text("name"), party.text("role"), party.title("system_title"))
    manifest = Manifest(purpose, fields.time("created"), peer, recipient, _snapshot(store), tuple(_members(fields)))
    faults += _missing(manifest)
    if faults:
        raise InputError("the manifest has faults of form", [Fault("manifest", 0, 0, text) for text in faults[:100]])
    return manifest


def _snapshot(fields: Fields) -> Snapshot:
    fields.exactly(("schema", "instance", "epoch", "audit", "hash"))
    return Snapshot(
        fields.text("schema"),
        fields.octets("instance", INSTANCE_OCTETS),
        fields.integer("epoch", 1, MAX_INTEGER),
        fields.integer("audit", 0, MAX_INTEGER),
        fields.octets("hash", 0, SHA256_OCTETS),
    )


def _members(fields: Fields) -> Iterator[Member]:
    values = fields.value("files")
    if not isinstance(values, list) or not 0 < len(values) <= MAX_FILES:
        fields.wrong("files", f"is not a list of 1 to {MAX_FILES}")
        return
    for number, value in enumerate(values):
        one = Fields(value, f"files[{number}]", fields.faults)
        one.exactly(("path", "octets", "sha256"))
        path = one.text("path", 200)
        if not is_path(path):
            one.wrong("path", "is not the path of a file of a home")
        yield Member(path, one.integer("octets", 0, MAX_OCTETS), one.octets("sha256", SHA256_OCTETS))


def _missing(manifest: Manifest) -> Iterator[str]:
    paths = [one.path for one in manifest.files]
    yield from (f"{name} is not among the files" for name in ALONE if name not in paths)
    if len(set(paths)) != len(paths):
        yield "a path stands twice"
    if manifest.purpose is ArchivePurpose.BACKUP and any(path.startswith(f"{KEYS}/") for path in paths):
        yield "a backup carries no key packages"


def is_path(path: str) -> bool:
    """Tell whether a path is one that an archive may name: nothing leads out of a home, or into its token."""
    folder, _, name = path.rpartition("/")
    return path in ALONE or (folder in FOLDERS and bool(_NAME.fullmatch(name)))


def member(path: str, source: Path) -> Member:
    """Measure a file; InputError for a name that no archive takes, RefusedError for what is no plain file."""
    if not is_path(path):
        raise InputError(f"the file {path} does not belong in a home", hint="move it elsewhere")
    if source.is_symlink() or not source.is_file():
        raise RefusedError(f"{source} is no plain file", hint="a backup takes none but these")
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return Member(path, file.tell(), digest)


def write_archive(path: Path, signed: bytes, manifest: Manifest, sources: Mapping[str, Path]) -> None:
    """Write the manifest's container and its files under a temporary name, sync them, and give them the name.

    The file has mode 0600; what a crash left under the temporary name is replaced. Raises RefusedError where `path`
    exists, or a file changed since it was measured.
    """
    if path.exists():
        raise RefusedError(f"{path} exists", hint="choose another name: a backup replaces nothing")
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(_header(MANIFEST, len(signed)) + signed + _padding(len(signed)))
            for one in manifest.files:
                _copy_in(out, one, sources[one.path])
            out.write(_END)
            out.flush()
            os.fsync(out.fileno())
        os.link(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        hint = "see whether the folder is there and yours, and the disk has room"
        raise InputError(f"{path} cannot be written: {error.strerror}", hint=hint) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _copy_in(out: IO[bytes], one: Member, source: Path) -> None:
    out.write(_header(one.path, one.octets))
    with source.open("rb") as file:
        if _copy(file, out, one.octets) != one.sha256 or file.read(1):
            raise RefusedError(f"{source} changed while it was copied", hint="give the command again")
    out.write(_padding(one.octets))


class Archive:
    """An archive that is open for reading: its manifest, whose signature holds, and its files, not yet read."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self.container = self._read_container()
        self.signed: Signed = open_container(self.container)
        self.manifest = parse_manifest(self.signed.content)
        whole = file.tell() + sum(_BLOCK + one.octets + len(_padding(one.octets)) for one in self.manifest.files)
        if os.fstat(file.fileno()).st_size != whole + len(_END):
            raise self._wrong("has another length than its manifest says: it was cut, or something was added")

    def extract(self, folder: Path) -> None:
        """Write every file below a new folder, each compared with the manifest; IntegrityError for any difference."""
        folder.mkdir(mode=0o700)
        for one in self.manifest.files:
            self._expect(_header(one.path, one.octets), one.path)
            path = folder / one.path
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                digest = _copy(self._file, out, one.octets)
                out.flush()
                os.fsync(out.fileno())
            if not hmac.compare_digest(digest, one.sha256):
                raise IntegrityError(f"{one.path} in {self._name} is not the file that was signed", "take another one")
            self._expect(_padding(one.octets), one.path)
        self._expect(_END, "the end")

    def _read_container(self) -> bytes:
        header = self._file.read(_BLOCK)
        match = re.fullmatch(rb"([0-7]{11})[ \0]", header[124:136])
        octets = int(match[1], 8) if match else MAX_CONTAINER + 1
        if octets > MAX_CONTAINER or header != _header(MANIFEST, octets):
            raise self._wrong("does not begin with a manifest")
        data = self._file.read(octets)
        self._expect(_padding(octets), "the manifest")
        return data

    def _expect(self, octets: bytes, what: str) -> None:
        if self._file.read(len(octets)) != octets:
            raise self._wrong(f"is not in the one form of an archive, at {what}")

    def _wrong(self, text: str) -> InputError:
        return InputError(f"{self._name} {text}", hint="give a file that hsmkm store backup or token migrate wrote")


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive; InputError or IntegrityError where it cannot be read or its signature does not hold.

    Whether its signer is to be believed is for the caller to say, before anything is extracted.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint="give the path of a backup") from error
    with file:
        yield Archive(file, path.name)


def _header(name: str, octets: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = octets, 0o600, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


def _padding(octets: int) -> bytes:
    return bytes(-octets % _BLOCK)


def _copy(source: IO[bytes], out: IO[bytes], octets: int) -> bytes:
    """Copy so many octets, or what there is of them, and give the SHA-256."""
    digest = hashlib.sha256()
    while octets and (piece := source.read(min(octets, _PIECE))):
        digest.update(piece)
        out.write(piece)
        octets -= len(piece)
    return digest.digest()
