"""A private data object in the token that holds the anchor of the store.

The content stands in hex in CKA_APPLICATION: CKA_VALUE is left to keys, so that whoever watches the token sees that no
value is read. SoftHSM rewrites an object in place, and its login rewrites a file of the token; so an object is never
changed: the new one is made before the old ones go, each time under a file lock and found anew.
"""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pkcs11 import Attribute, ObjectClass

from hsmkm.errors import TokenRefusedError
from hsmkm.token.template import Template

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hsmkm.token.session import TokenSession

LABEL = b"anchor"
_MOST = 16
"""Objects that broken-off writings may have left."""


class TokenAnchor:
    """The anchor object of the one store whose keys the token holds."""

    def __init__(self, session: TokenSession, home: Path) -> None:
        self._session = session
        self._lock = home / "token" / "anchor.lock"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock a file in the home's token folder."""
        with self._lock.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> tuple[bytes, ...]:
        """Read the values of the object, or of all that broken-off writings left."""
        return tuple(self._read(found) for found in self._find())

    def write(self, content: bytes) -> None:
        """Make an object with this value, and destroy those that were there before."""
        before = self._find()
        listed = {
            Attribute.CLASS: int(ObjectClass.DATA),
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.MODIFIABLE: False,
            Attribute.LABEL: LABEL,
            Attribute.APPLICATION: content.hex().encode(),
        }
        made = self._session.cryptoki.create(Template(listed))
        if self._read(made) != content:
            raise TokenRefusedError("the token did not keep the store's anchor", hint="set store.anchor to a file")
        for one in before:
            self._session.cryptoki.destroy(one)

    def _read(self, found: int) -> bytes:
        text = self._session.cryptoki.read(found, Attribute.APPLICATION)
        try:
            return bytes.fromhex(text.decode("ascii"))
        except ValueError:
            return text

    def _find(self) -> list[int]:
        query = Template({Attribute.CLASS: int(ObjectClass.DATA), Attribute.TOKEN: True, Attribute.LABEL: LABEL})
        return self._session.cryptoki.find(query, _MOST)
