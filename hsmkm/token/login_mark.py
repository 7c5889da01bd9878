"""A mark that stands on the disk while a login waits for the token's answer.

A process that dies in C_Login, or is ended because C_Login hangs, tells nobody that the token may have counted a wrong
PIN, and the next start would try it again. The mark tells. It names the token, the PIN source and the state of its
file, and is made of no PIN: whoever reads a hash of a PIN can guess the PIN without the token.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsmkm.durable_file import sync_folder
from hsmkm.errors import HsmkmError, TokenUnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hsmkm.token.uri import TokenUri

NAME = "login.unanswered"


@dataclass(frozen=True, slots=True)
class LoginMark:
    """The mark of one token and one state of a PIN source; OSError where its folder cannot be written.

    Who uses it holds the lock of logins.
    """

    path: Path
    content: bytes

    @classmethod
    def of(cls, home: Path, token: TokenUri, pin_state: str) -> LoginMark:
        """Make the mark for a home's next login; nothing is written yet."""
        digest = hashlib.sha256(f"{token}\n{pin_state}".encode()).hexdigest()
        return cls(home / "token" / NAME, f"{digest}\n".encode())

    def stands(self) -> bool:
        """Tell whether a login that was never answered left this very mark."""
        return self.path.is_file() and self.path.read_bytes() == self.content

    @contextmanager
    def until_answered(self) -> Iterator[None]:
        """Let the mark stand, in place of any other, until the token answered the login in between.

        TokenUnreachableError is no answer: nobody knows what the token made of the PIN.
        """
        self._leave()
        try:
            yield
        except TokenUnreachableError:
            raise
        except HsmkmError:
            self._clear()
            raise
        else:
            self._clear()

    def _leave(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(self.content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.path.parent)

    def _clear(self) -> None:
        self.path.unlink(missing_ok=True)
