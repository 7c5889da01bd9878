"""The errors a caller meets, named from the caller's side.

Each carries one sentence on what happened, a hint on what to do (the general advice of its kind where there is none),
and the exit code of the command line (0 done, 1 refused or failed, 2 usage, 3 token unreachable, 4 login, 5 policy or
authority, 6 integrity violated, 7 partly done).
No message or hint ever holds a key, a PIN or a challenge response.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


class HsmkmError(Exception):
    """Something the caller must know: what happened, and what to do about it."""

    exit_code: ClassVar[int] = 1
    advice: ClassVar[str] = "give the command again; if it fails again, report it with this line"
    """What to do about an error of this kind where nothing better is known: what is shown where `hint` is empty."""

    suspicion: ClassVar[str] = ""
    """The name under which operators count it, where it speaks of a peer at fault or of somebody in between."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, order=True)
class Fault:
    """One thing wrong with an input; line and column count from 1, and 0 stands for the whole file or line."""

    source: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        place = self.source
        if self.line:
            place += f":{self.line}"
        if self.line and self.column:
            place += f":{self.column}"
        return f"{place}: {self.text}"


class InputError(HsmkmError):
    """An input is wrong; every fault of it is in `faults`, and nothing was done."""

    advice = "correct it and give it again; nothing was done"

    def __init__(self, message: str, faults: Iterable[Fault] = (), hint: str = "") -> None:
        self.faults = tuple(faults)
        super().__init__(message, hint)
        self.args = (message, self.faults, hint)


class RefusedError(HsmkmError):
    """A rule of ours, or the other side, refused; every reason is in `reasons`, and nothing was changed."""

    advice = "nothing was changed"

    def __init__(self, message: str, reasons: Iterable[str] = (), hint: str = "") -> None:
        self.reasons = tuple(reasons)
        super().__init__(message, hint)
        self.args = (message, self.reasons, hint)


class TransportError(HsmkmError):
    """The other side could not be reached, closed the connection, or did not answer in time."""

    advice = "check the address and the network, then try again"


class ProtocolError(HsmkmError):
    """The other side sent octets that the standard does not allow."""

    advice = "what it sent is not believed; find out what is at that address"


class TokenRefusedError(HsmkmError):
    """The token understood the call and declined it: a guard, a template, a mechanism it lacks."""

    advice = "see what this token can do: hsmkm token doctor"


class TokenUnreachableError(HsmkmError):
    """The token is missing, gone or failing; a new session generation may find it again."""

    exit_code = 3
    advice = "check that the token is reachable: hsmkm token doctor"


class TokenBusyError(TokenUnreachableError):
    """The token is out of sessions or memory for now; the same call may go through later."""


class LoginError(HsmkmError):
    """The PIN is missing, wrong or locked; it is never tried twice."""

    exit_code = 4
    advice = "check token.pin in hsmkm.toml, and what it names"


class PolicyError(HsmkmError):
    """The policy or the authority of a party does not allow it."""

    exit_code = 5
    advice = "see the section policy of hsmkm.toml, and the role of the party"


class IntegrityError(HsmkmError):
    """Something stored or received does not fit its MAC, tag or signature: it was altered or belongs elsewhere."""

    exit_code = 6
    advice = "do not go on with it: ask for it again, or compare with a backup"


class PartlyDoneError(HsmkmError):
    """Some of the work is done and durable, some is not; the message says how it goes on."""

    exit_code = 7
    advice = "what is done is kept; give the command again for the rest"
