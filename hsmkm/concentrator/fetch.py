"""Fetching key packages from the AIM: list, fetch, accept, post the receipt, until nothing waits.

Nothing is remembered here. A package stays on the AIM's list until its receipt arrived, and `accept` answers a package
that it has taken before with its first receipt; so a run that was cut off anywhere is finished by the next one.
Packages are taken in the order of the list, and the first failure ends the run: taking a later sequence number first
would make the earlier package a replay.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsmkm.errors import ProtocolError
from hsmkm.link.aim import Aim, AimConnection

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LIST = 1024 * 1024
MAX_PACKAGE = 64 * 1024 * 1024
MAX_ANSWER = 64 * 1024
MAX_PACKAGES = 10_000
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A package on the AIM's list; `sha256` is that of the `.p7m` in hex."""

    id: str
    sha256: str


def fetch_packages(aim: Aim, accept: Callable[[bytes], bytes]) -> tuple[str, ...]:
    """Take every package that waits, and return their ids; `accept` opens a `.p7m` and returns the signed receipt.

    `accept` must return a receipt for a package that it refuses for good, too: an error of it ends the run and the
    package is offered again. What was taken before an error is done and acknowledged.
    """
    done: list[str] = []
    with _Session(aim) as session:
        while waiting := session.waiting():
            for package in waiting:
                if package.id in done:
                    raise ProtocolError(f"the AIM lists package {package.id} again after its receipt")
                if len(done) == MAX_PACKAGES:
                    raise ProtocolError(f"the AIM lists more than {MAX_PACKAGES} packages")
                session.post_receipt(package.id, accept(session.package(package)))
                done.append(package.id)
    return tuple(done)


class _Session(AimConnection):
    """The packages of one connection."""

    def waiting(self) -> list[Waiting]:
        return _read_list(self.request("GET", "/v1/packages", MAX_LIST))

    def package(self, package: Waiting) -> bytes:
        content = self.request("GET", f"/v1/packages/{package.id}", MAX_PACKAGE)
        if hashlib.sha256(content).hexdigest() != package.sha256:
            raise ProtocolError(f"package {package.id} arrived with another digest than the list names")
        return content

    def post_receipt(self, package_id: str, receipt: bytes) -> None:
        self.request("POST", f"/v1/packages/{package_id}/receipt", MAX_ANSWER, receipt)


def _read_list(content: bytes) -> list[Waiting]:
    try:
        items = json.loads(content)["packages"]
        found = [Waiting(item["id"], item["sha256"]) for item in items]
        fit = isinstance(items, list) and all(
            _ID.fullmatch(item.id) and _SHA256.fullmatch(item.sha256) for item in found
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError("the AIM's list of packages cannot be read") from error
    if not isinstance(items, list) or not fit:
        raise ProtocolError("the AIM's list of packages names one without a UUID or a SHA-256 digest")
    return found
