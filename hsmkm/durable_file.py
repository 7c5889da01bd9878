"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hsmkm.errors import InputError, RefusedError

_TO_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_OF_EVERYBODY, _OF_ITS_OWNER = 0o666, 0o600


def replace_file(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, sync it and rename it, so that no reader sees half of it.

    What a crash leaves under the temporary name, the next who writes the same file takes over.
    """
    _write(path, data, _OF_EVERYBODY)


def create_secret_file(path: Path, data: bytes) -> None:
    """Write a file as `replace_file` does that only its owner reads (mode 0600); RefusedError where there is one."""
    _write(path, data, _OF_ITS_OWNER)


def _write(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(temporary, mode) as file:
            if mode == _OF_ITS_OWNER and os.path.lexists(path):
                raise RefusedError(f"there is a file {path} already", hint="move it away to make a new one")
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        hint = "see whether the folder is yours and the disk has room"
        raise InputError(f"{path} cannot be written: {error.strerror}", hint=hint) from error


@contextmanager
def _held(temporary: Path, mode: int) -> Iterator[BinaryIO]:
    """Open an empty file that no other process writes; it is gone at the end unless it was renamed."""
    while True:
        with os.fdopen(os.open(temporary, _TO_WRITE, mode), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still(file, temporary):
                continue  # whoever had the lock before renamed it
            try:
                file.truncate(0)
                yield file
            finally:
                if _is_still(file, temporary):
                    temporary.unlink()
            return


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename is not before its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
