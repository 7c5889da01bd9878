"""What a concentrator's process asks of its party, answered by a worker that has token and store open."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from hsmkm.errors import HsmkmError, RefusedError
from hsmkm.steps.communicate import split_address
from hsmkm.steps.party import Party
from hsmkm.steps.receive import receive_or_refuse
from hsmkm.store import meters, parties
from hsmkm.token.standing import StandingWorker

ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Takes packages, knows the head end, and finds meters."""

    worker: StandingWorker[Party]
    aim: str

    def aim_title(self) -> str:
        """Give the registered AIM's system title, which its TLS certificate must name; RefusedError if unknown."""
        return self.worker.call(_title, self.aim, deadline=ANSWER_SECONDS)

    def accept(self, package: bytes) -> bytes:
        """Take a package or refuse it for good, and give the signed receipt."""
        return self.worker.call(receive_or_refuse, package, deadline=10 * ANSWER_SECONDS)

    def authorise(self, certificate_der: bytes) -> bool:
        """Tell whether a TLS certificate is the one pinned for our AIM, whose head end alone may use the relay."""
        fingerprint = hashlib.sha256(certificate_der).digest()
        return self.worker.call(_is_pinned, self.aim, fingerprint, deadline=ANSWER_SECONDS)

    def route(self, system_title: bytes) -> tuple[str, int] | None:
        """Find where a meter is reached; None for one that no package named."""
        address = self.worker.call(_address, system_title, deadline=ANSWER_SECONDS)
        try:
            return split_address(address, system_title.hex().upper()) if address else None
        except HsmkmError:
            return None


def _title(party: Party, name: str) -> str:
    with party.store.read() as tx:
        row = parties.require(tx, name)
    if row.role != "utility" or row.system_title is None:
        raise RefusedError(f"party {name} is no AIM with a system title", hint="register it with: hsmkm party add")
    return row.system_title.hex().upper()


def _is_pinned(party: Party, name: str, fingerprint: bytes) -> bool:
    with party.store.read() as tx:
        row = parties.get(tx, name)
    return row is not None and row.role == "utility" and row.certificates.get("tls") == fingerprint


def _address(party: Party, system_title: bytes) -> str | None:
    with party.store.read() as tx:
        meter = meters.get(tx, system_title)
    return meter.address if meter else None
