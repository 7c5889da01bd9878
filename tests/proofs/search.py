"""Searches files and the memory of processes for secrets, in every form in which one could have been written down.

A value is looked for raw, in hex of both cases, and in base64 of both alphabets wherever it may begin in a group of
three octets. For an AES key so is its GCM hash key, which AES makes of it and which says as much in many places.
"""

from __future__ import annotations

import base64
import os
import re
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (r\S+) \S+ \S+ \d+\s*(.*)")
_KERNELS_OWN = ("[vvar", "[vsyscall", "[vdso")
_STEP = 4 << 20
_WORD = 8
_URL_ALPHABET = bytes.maketrans(b"+/", b"-_")


class Needles:
    """The forms of some secrets, each of 15 octets or more, and what finds any of them in one pass.

    Octets are read as words of 8: wherever a needle begins, one of its words lies at a multiple of 8 and is known here.
    What a word promises is then looked for in full.
    """

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._words: dict[int, list[tuple[bytes, str]]] = {}
        self._longest = 0
        for name, value in secrets.items():
            for form, octets in _forms(value):
                assert len(octets) >= 2 * _WORD - 1, (name, form)
                self._longest = max(self._longest, len(octets))
                for start in range(_WORD):
                    word = int.from_bytes(octets[start : start + _WORD], sys.byteorder)
                    self._words.setdefault(word, []).append((octets, f"{name} {form}"))

    def within(self, octets: bytes) -> set[str]:
        """Name every form that stands in these octets."""
        words = memoryview(octets)[: len(octets) // _WORD * _WORD].cast("Q")
        promised = set(self._words).intersection(words)
        return {form for word in promised for needle, form in self._words[word] if needle in octets}

    def in_files(self, folder: Path, aside: Iterable[Path] = ()) -> dict[str, set[str]]:
        """Every file below a folder that holds a needle, in its content or its name; the files `aside` excepted."""
        excepted = set(aside)
        found = {}
        for path in files_of(folder):
            if path in excepted:
                continue
            hits = self.within(os.fsencode(path.name))
            hits |= self.within(path.read_bytes())
            if hits:
                found[str(path)] = hits
        return found

    def in_database(self, path: Path) -> set[str]:
        """Name every form that stands in a value of any table: whole values, which in the file lie cut into pages."""
        found: set[str] = set()
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                for row in database.execute(f'SELECT * FROM "{table}"'):  # noqa: S608 - a name from the schema
                    found |= self.within(
                        b"\0".join(item if isinstance(item, bytes) else str(item).encode() for item in row)
                    )
        return found

    def in_memory(self, process: int) -> set[str]:
        """Name every form that stands in the memory of a process: all that can be read and is no file's own."""
        found: set[str] = set()
        with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
            for start, end in _regions(process):
                found |= self._in_region(memory.fileno(), start, end)
        return found

    def _in_region(self, memory: int, start: int, end: int) -> set[str]:
        found: set[str] = set()
        for place in range(start, end, _STEP):
            try:
                octets = os.pread(memory, min(end - place, _STEP + self._longest), place)
            except OSError:
                continue  # a page that is mapped and has nothing behind it
            found |= self.within(octets)
        return found

    def in_command(self, process: int) -> set[str]:
        """Name every form that stands in the arguments or the environment of a process."""
        return self.within(b"\n".join(Path(f"/proc/{process}/{name}").read_bytes() for name in ("cmdline", "environ")))


def files_of(folder: Path) -> list[Path]:
    """Every regular file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def key_needles(keys: Mapping[str, Mapping[str, bytes]]) -> Needles:
    """Needles for the keys of meters, given by meter and role, and for the hash key of each."""
    return Needles(key_secrets(keys))


def key_secrets(keys: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """The keys of meters, and the hash key of each."""
    secrets = {}
    for meter, roles in keys.items():
        for role, value in roles.items():
            secrets[f"{meter} {role}"] = value
            encryptor = Cipher(AES(value), ECB()).encryptor()  # noqa: S305 - the hash key is one block of ECB
            secrets[f"hash key of {meter} {role}"] = encryptor.update(bytes(16))
    return secrets


def copy_memory(process: int, path: Path) -> None:
    """Write what `in_memory` searches to a file, for a search once the secrets are known."""
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory, path.open("wb") as copy:
        for start, end in _regions(process):
            for place in range(start, end, _STEP):
                try:
                    copy.write(os.pread(memory.fileno(), min(end - place, _STEP), place))
                except OSError:
                    continue  # as above


def _regions(process: int) -> list[tuple[int, int]]:
    """The memory of a process but what it only reads from files, which are searched as files where they are ours."""
    found = []
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        match = _MAP.match(line)
        if match and not match[4].startswith(_KERNELS_OWN) and ("w" in match[3] or not match[4].startswith("/")):
            found.append((int(match[1], 16), int(match[2], 16)))
    return found


def _forms(value: bytes) -> Iterable[tuple[str, bytes]]:
    yield "raw", value
    yield "backwards", value[::-1]
    yield "in hex", value.hex().encode()
    yield "in capital hex", value.hex().upper().encode()
    yield "in hex with colons", value.hex(":").encode()
    yield "in hex with blanks", value.hex(" ").upper().encode()
    yield "in Python's escapes", repr(value)[2:-1].encode()
    for before in range(3):
        whole = base64.b64encode(bytes(before) + value)
        begin, end = (8 * before + 5) // 6, 8 * (before + len(value)) // 6
        yield f"in base64 ({before})", whole[begin:end]
        if b"+" in whole or b"/" in whole:
            yield f"in base64url ({before})", whole[begin:end].translate(_URL_ALPHABET)
