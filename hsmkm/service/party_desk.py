"""The desk of a real party: everything it answers comes from the store, verified by the token in a worker."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256

from hsmkm.dlms.suspicion import KINDS
from hsmkm.errors import HsmkmError, InputError, IntegrityError, RefusedError
from hsmkm.service.desk import PackageSummary, ReceiptOutcome, ReceiptResult
from hsmkm.steps import deliver, suspicions
from hsmkm.steps.broker import forward
from hsmkm.steps.certify import own_chain
from hsmkm.steps.party import Party
from hsmkm.steps.tell import tell_of_receipt
from hsmkm.store import packages, parties
from hsmkm.store.packages import Direction, PackageRecord
from hsmkm.token.standing import StandingWorker

MAX_LISTED = 1000
ANSWER_SECONDS = 60.0
CARRY_SECONDS = 120.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PartyDesk:
    """Answers the HTTPS interface through a worker that has the party open."""

    home: Path
    worker: StandingWorker[Party]
    counted: suspicions.Count = field(default_factory=suspicions.Count)

    def party_for(self, certificate_der: bytes) -> str | None:
        """Return the registered party whose pinned TLS certificate this is, or our own name for our own certificate."""
        fingerprint = hashlib.sha256(certificate_der).digest()
        return self.worker.call(_party_for, fingerprint, deadline=ANSWER_SECONDS)

    def may_observe(self, party: str) -> bool:
        """Tell whether the party may read the metrics: only whoever runs this service, with its own certificate."""
        return self.worker.call(_is_own_name, party, deadline=ANSWER_SECONDS)

    def packages(self, party: str) -> Sequence[PackageSummary]:
        """List the party's packages without receipt, oldest first, up to one whose file is just being written."""
        waiting = self.worker.call(_waiting, party, deadline=ANSWER_SECONDS)
        return [self._summary(record) for record in takewhile(self._is_written, waiting)]

    def package(self, party: str, package_id: str) -> bytes | None:
        """Return the `.p7m` if it was made for this party; IntegrityError if the file is not the one recorded."""
        record = self.worker.call(_sent_to, party, package_id, deadline=ANSWER_SECONDS)
        if record is None:
            return None
        try:
            data = self._path(package_id).read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError(f"the file of package {package_id} is missing") from error
        if hashlib.sha256(data).digest() != record.sha256:
            raise IntegrityError(f"the file of package {package_id} was altered")
        return data

    def receipt(self, party: str, package_id: str, content: bytes) -> ReceiptOutcome:
        """Check and keep a receipt; UNKNOWN for a package that is not this party's."""
        if self.worker.call(_sent_to, party, package_id, deadline=ANSWER_SECONDS) is None:
            return ReceiptOutcome(ReceiptResult.UNKNOWN)
        try:
            replayed = self.worker.call(_keep_receipt, package_id, content, deadline=ANSWER_SECONDS)
        except (InputError, IntegrityError, RefusedError) as error:
            reasons = error.reasons if isinstance(error, RefusedError) and error.reasons else (error.message,)
            return ReceiptOutcome(ReceiptResult.REFUSED, reasons)
        self._tell(package_id)
        return ReceiptOutcome(ReceiptResult.REPLAYED if replayed else ReceiptResult.ACCEPTED)

    def _tell(self, package_id: str) -> None:
        """Send what concentrators are owed after a receipt; the receipt is kept already, and what fails stays owed."""
        try:
            self.worker.call(tell_of_receipt, package_id, deadline=ANSWER_SECONDS)
        except HsmkmError as error:
            logger.warning("concentrators wait for notices after the receipt of package %s: %s", package_id, error)

    def refusals(self) -> Mapping[str, int]:
        """Count the suspicious answers of meters that were refused, by kind, as the audit log has them."""
        counted = self.counted
        with counted.lock:
            further = self.worker.call(suspicions.counted_after, counted.sequence, deadline=ANSWER_SECONDS)
            return dict.fromkeys(KINDS, 0) | counted.add(*further)

    def forward(self, party: str, meter: str, apdu: bytes) -> bytes:
        """Carry an APDU of the party's to the meter of this system title, and return the meter's answer."""
        return self.worker.call(forward, apdu, party, meter, deadline=CARRY_SECONDS)

    def ready(self) -> tuple[bool, str]:
        """Tell whether token and store answer; what is wrong goes to the log, since anyone of the PKI may ask."""
        try:
            self.worker.call(_probe, deadline=ANSWER_SECONDS)
        except HsmkmError as error:
            logger.warning("not ready: %s", error)
            return False, "token or store does not answer; the log of the service says why"
        return True, "token and store answer"

    def _path(self, package_id: str) -> Path:
        return self.home / "packages" / f"{package_id}.p7m"

    def _is_written(self, record: PackageRecord) -> bool:
        written = self._path(record.id).is_file()
        if not written:
            logger.warning("the file of package %s is not there; it and what follows it waits", record.id)
        return written

    def _summary(self, record: PackageRecord) -> PackageSummary:
        octets = self._path(record.id).stat().st_size
        return PackageSummary(record.id, record.purpose, record.sequence, record.sha256.hex(), octets)


def _party_for(party: Party, fingerprint: bytes) -> str | None:
    with party.store.read() as tx:
        row = parties.by_certificate(tx, "tls", fingerprint)
    if row is not None:
        return row.name
    return party.settings.party.name if own_chain(party, "tls")[0].fingerprint(SHA256()) == fingerprint else None


def _is_own_name(party: Party, name: str) -> bool:
    return name == party.settings.party.name


def _waiting(party: Party, name: str) -> list[PackageRecord]:
    with party.store.read() as tx:
        found = packages.listing(tx, direction=Direction.SENT, peer=name, state=deliver.SENT)
    with deliver.outbox(party, wait=False):
        pass
    return sorted(found, key=lambda item: (item.created, item.sequence))[:MAX_LISTED]


def _sent_to(party: Party, name: str, package_id: str) -> PackageRecord | None:
    with party.store.read() as tx:
        record = packages.get(tx, package_id)
    mine = record is not None and record.direction is Direction.SENT and record.peer == name
    return record if mine else None


def _keep_receipt(party: Party, package_id: str, content: bytes) -> bool:
    record, replayed = deliver.accept_receipt(party, content, package_id)
    return replayed and record.id == package_id


def _probe(party: Party) -> None:
    party.vault.verify(b"ready", party.vault.mac(b"ready"))
    with party.store.read():
        pass
