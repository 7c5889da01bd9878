"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hsmkm.errors import InputError, RefusedError

_TO_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_ONCE = 250
"""Files that are open at once: fewer than a process may have."""

_NUMBER = re.compile(r"[0-9]+")
_MANY = 16
"""From so many files on, the whole file system is brought to the disk instead of each of them."""

_OF_EVERYBODY, _OF_ITS_OWNER = 0o666, 0o600


def replace_file(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, sync it and rename it, so that no reader sees half of it.

    What a crash leaves under the temporary name, the next who writes the same file takes over.
    """
    _write(path, data, _OF_EVERYBODY)


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write many files into a folder as `replace_file` does, by their names; a crash leaves each whole or as it was.

    They reach the disk together, where the system can do that.
    """
    names = list(files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder) as held:
            for start in range(0, len(names), _AT_ONCE):
                _write_many(folder, {name: files[name] for name in names[start : start + _AT_ONCE]})
            os.fsync(held)
    except OSError as error:
        raise _unwritten(folder, error) from error


def _write_many(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files under temporary names, sync them, and then give them their names."""
    temporary = {f"{folder}/.{name}.new": f"{folder}/{name}" for name in files}
    descriptors: list[int] = []
    try:
        for path, data in zip(temporary, files.values(), strict=True):
            descriptors.append(os.open(path, _TO_WRITE | os.O_TRUNC, _OF_EVERYBODY))
            _put(descriptors[-1], data)
        _sync(descriptors)
        while temporary:
            os.replace(*next(iter(temporary.items())))  # noqa: PTH105 - a path object costs as much as the call
            del temporary[next(iter(temporary))]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        for path in temporary:
            Path(path).unlink(missing_ok=True)


def _put(descriptor: int, data: bytes) -> None:
    """Write all of it: a call may take only a part."""
    while data:
        data = data[os.write(descriptor, data) :]


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Open a folder in which no other process writes many files meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def create_secret_file(path: Path, data: bytes) -> None:
    """Write a file as `replace_file` does that only its owner reads (mode 0600); RefusedError where there is one."""
    _write(path, data, _OF_ITS_OWNER)


def _write(path: Path, data: bytes, mode: int) -> None:
    temporary = _temporary(path)
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
        raise _unwritten(path, error) from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _unwritten(path: Path, error: OSError) -> InputError:
    hint = "see whether the folder is yours and the disk has room"
    return InputError(f"{path} cannot be written: {error.strerror}", hint=hint)


def _syncfs_tells_errors(release: str) -> bool:
    """Tell whether this Linux is 5.8 or later; an earlier one answers 0 also where data was lost (syncfs(2))."""
    return tuple(int(part) for part in _NUMBER.findall(release)[:2]) >= (5, 8)


def _sync(files: Sequence[int]) -> None:
    """Bring files of one file system to the disk: many of them at once, where the system can."""
    sync_all = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if sync_all is None or len(files) < _MANY or not _syncfs_tells_errors(os.uname().release):
        for file in files:
            os.fsync(file)
    elif sync_all(files[0]) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


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
