"""An anchor outside the database: how far the store was, so that a restored or shortened one is found out.

It holds `advance` and the digest of the state row with it, under a MAC. It is raised after each commit and before the
function that committed returns, so nothing that a transaction reserved or stored is used before the anchor knows. It
only rises. A store ahead of its anchor is what a crash between commit and raising leaves, and is taken; a store behind
it, another one at the same advance, or one of another instance is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError, IntegrityError
from hsmkm.store.canonical import MECHANISM, encode
from hsmkm.store.state import INSTANCE_OCTETS, LABEL, StoreState
from hsmkm.token.types import MAC_OCTETS, Mac

if TYPE_CHECKING:
    from hsmkm.store.store import Authenticator

RECOVER = "if the database was restored on purpose: hsmkm store recover; else find out who did this"
_MAGIC = b"hsmkm anchor/1"
_DIGEST_OCTETS = 32
_NUMBER_OCTETS = 8
_OCTETS = len(_MAGIC) + INSTANCE_OCTETS + 3 * _NUMBER_OCTETS + _DIGEST_OCTETS + 4 + MAC_OCTETS


class Anchor(Protocol):
    """A place outside the database that keeps some 150 octets."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep every other process and thread of this home from reading and writing."""

    def read(self) -> tuple[bytes, ...]:
        """Read what was written; more than one where a writing was cut short, none if there never was one."""

    def write(self, content: bytes) -> None:
        """Replace what is there; a crash leaves the old, the new or both."""


class FileAnchor:
    """An anchor in a file; it shows a restored database as long as it is not restored with it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock a file beside it."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._path.with_name(self._path.name + ".lock").open("ab")
        except OSError as error:
            raise self._unusable(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> tuple[bytes, ...]:
        """Read the file."""
        try:
            with self._path.open("rb") as file:
                return (file.read(_OCTETS + 1),)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._unusable(error) from error

    def write(self, content: bytes) -> None:
        """Write the file under another name, sync and rename it."""
        replace_file(self._path, content)

    def _unusable(self, error: OSError) -> InputError:
        return InputError(f"the store's anchor {self._path} cannot be used: {error.strerror}", hint="see store.anchor")


@dataclass(frozen=True, slots=True)
class Anchored:
    """What an anchor holds of a store."""

    instance: bytes
    advance: int
    digest: bytes
    counter_reach: int
    counter_highest: int

    @classmethod
    def of(cls, state: StoreState) -> Anchored:
        """Say of a state what the anchor keeps."""
        return cls(state.instance, state.advance, digest(state), state.counter_reach, state.counter_highest)

    def encode(self, authenticator: Authenticator) -> bytes:
        """Write it with its MAC."""
        numbers = (self.advance, self.counter_reach, self.counter_highest)
        body = self.instance + b"".join(number.to_bytes(_NUMBER_OCTETS, "big") for number in numbers) + self.digest
        mac = authenticator.mac(_covered(authenticator.integrity_key, body))
        return _MAGIC + body + mac.key_number.to_bytes(4, "big") + mac.value

    @classmethod
    def decode(cls, content: bytes, authenticator: Authenticator) -> Anchored:
        """Read what `encode` wrote; raises IntegrityError for anything else."""
        if len(content) != _OCTETS or not content.startswith(_MAGIC):
            raise IntegrityError("the store's anchor is not one", hint=RECOVER)
        body, key = content[len(_MAGIC) : -MAC_OCTETS - 4], content[-MAC_OCTETS - 4 : -MAC_OCTETS]
        mac = Mac(int.from_bytes(key, "big"), content[-MAC_OCTETS:])
        try:
            authenticator.verify(_covered(mac.key_number, body), mac)
        except IntegrityError as error:
            raise IntegrityError("the store's anchor does not fit its mac", hint=RECOVER) from error
        instance, rest = body[:INSTANCE_OCTETS], body[INSTANCE_OCTETS:]
        numbers = [rest[at : at + _NUMBER_OCTETS] for at in range(0, 3 * _NUMBER_OCTETS, _NUMBER_OCTETS)]
        advance, reach, highest = (int.from_bytes(number, "big") for number in numbers)
        return cls(instance, advance, rest[3 * _NUMBER_OCTETS :], reach, highest)


def digest(state: StoreState) -> bytes:
    """Digest a state row with its MAC (SHA-256, 32 octets)."""
    cells = (*state.values().values(), state.mac.key_number, state.mac.value)
    return hashlib.sha256(encode(LABEL, state.instance, *cells)).digest()


def held(anchor: Anchor, authenticator: Authenticator) -> Anchored | None:
    """Read an anchor, the newest where a writing was cut short; the caller holds it exclusively."""
    found = [Anchored.decode(content, authenticator) for content in anchor.read()]
    return max(found, key=lambda one: one.advance, default=None)


def refuse_older(state: StoreState, anchored: Anchored | None) -> None:
    """Raise IntegrityError unless the state, read after the anchor, is of the same store and as new or newer."""
    if anchored is None:
        if state.advance > 1:
            raise IntegrityError("the store's anchor is gone", hint=RECOVER)
        return
    if state.instance != anchored.instance:
        raise IntegrityError("the store is another one than its anchor knows", hint="put its own database in place")
    if state.advance < anchored.advance:
        text = f"the store was restored or cut short: it is at {state.advance}, and its anchor at {anchored.advance}"
        raise IntegrityError(text, hint=RECOVER)
    if state.advance == anchored.advance and digest(state) != anchored.digest:
        raise IntegrityError("the store is not the one that its anchor knows: the two parted", hint=RECOVER)


def _covered(key_number: int, body: bytes) -> bytes:
    return encode("hsmkm anchor/1", MECHANISM, key_number, body)
