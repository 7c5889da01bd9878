"""Provisioning for legacy line equipment: a file of injection records in place of an injection package.

Up to 10,000 key sets make one file, and one transaction holds the meters, their key sets and the file's record; the
file is synced before the commit and named after it, and what a crash left is finished by the outbox. The file is not
signed: who takes it compares its SHA-256 with the one shown and recorded in the audit log.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from hsmkm.config import load_model
from hsmkm.durable_file import sync_folder
from hsmkm.steps.births import Made
from hsmkm.steps.deliver import PARTIAL, SENT, outbox
from hsmkm.steps.line_writer import make_records
from hsmkm.steps.order import ProductionOrder, read_order
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.provision import (
    Batch,
    add_made,
    batches_of,
    finish,
    given_to,
    provisioned,
    refuse_twins,
)
from hsmkm.steps.results import Provisioned
from hsmkm.steps.waiting import chunks_of, waiting_of
from hsmkm.store import holders, packages
from hsmkm.store.packages import Direction, PackageRecord
from hsmkm.store.store import Transaction
from hsmkm.token.line_keys import LineKeys

PURPOSE = "line-records"


def provision_records(party: Party, path: Path, label: str) -> Provisioned:
    """Provision a production order for the line that has the line key of this label; once done it does nothing.

    Raises InputError with every fault of the file, RefusedError where the line key is none or is for another order;
    nothing is provisioned then.
    """
    order = read_order(path, lambda name: load_model(name, party.home))
    with outbox(party):
        known = provisioned(party, order)
        if known is not None:
            return known
        LineKeys(party.vault).find(label, order.digest)
        chunks = chunks_of(waiting_of(party, order))
        files = [_hand_out(party, order, label, batches_of(party, order, chunk)) for chunk in chunks]
        return finish(party, order, files)


def _hand_out(party: Party, order: ProductionOrder, label: str, batches: Sequence[Batch]) -> Path:
    """Make the key sets of up to 10,000 meters, and their file."""
    count = sum(len(batch.meters) for batch in batches)
    work = ((label, order.digest, batch.forms, batch.pairs) for batch in batches)
    made = list(party.hands.work(count, make_records, work))
    refuse_twins([one for each in made for one in each])
    record_id = str(uuid.uuid4())
    path = party.home / "packages" / f"{record_id}.jsonl"
    digest = _write(path, made)
    with party.store.begin(PURPOSE, label, {"id": record_id, "meters": count, "sha256": digest.hex()}) as tx:
        add_made(tx, order, batches, made)
        packages.add(tx, _record(party, tx, record_id, _peer(label), digest, count))
        holders.add_sets(tx, _peer(label), record_id, given_to(batches, made))
    path.with_name(path.name + PARTIAL).rename(path)
    sync_folder(path.parent)
    return path


def _peer(label: str) -> str:
    """Name who holds a line key, whoever that is, where holders of keys are named; no party has a name with a colon."""
    return f"line:{label}"


def _write(path: Path, made: Sequence[tuple[Made, ...]]) -> bytes:
    """Write the records under the temporary name, for their owner alone; the SHA-256 of the file."""
    digest = hashlib.sha256()
    descriptor = os.open(
        path.with_name(path.name + PARTIAL), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
    )
    with os.fdopen(descriptor, "wb") as file:
        for one in (one for each in made for one in each):
            records = one.entries.encode()
            digest.update(records)
            file.write(records)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return digest.digest()


def _record(party: Party, tx: Transaction, record_id: str, peer: str, digest: bytes, count: int) -> PackageRecord:
    now = utc_now()
    return PackageRecord(
        id=record_id,
        direction=Direction.SENT,
        purpose=PURPOSE,
        sequence=packages.next_sequence(tx, peer, PURPOSE),
        peer=peer,
        created=now,
        expires=now + timedelta(days=party.settings.policy.package_days),
        sha256=digest,
        state=SENT,
        meters=count,
    )
