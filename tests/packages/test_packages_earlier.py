"""What version 0.1.0 wrote stays readable: packages, a receipt, a checkpoint, a list of a backup, an audit log.

None of it holds a secret: the keys in the packages are wrapped for tokens that no longer exist.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hsmkm.packages.archive import ArchivePurpose, parse_manifest
from hsmkm.packages.container import open_container
from hsmkm.packages.receipt import open_receipt
from hsmkm.packages.receive import inspect_package
from hsmkm.store.store import record_hash

WRITTEN = Path(__file__).parent / "fixtures" / "0.1.0"


@pytest.mark.parametrize("purpose", ["injection", "delivery"])
def test_a_package_is_read(purpose: str) -> None:
    content = inspect_package((WRITTEN / f"{purpose}.p7m").read_bytes()).content
    assert content.header.purpose.value == purpose
    assert len(content.meters) == 12
    assert all(entry.keys for entry in content.meters)


def test_a_receipt_is_read_and_is_for_the_package() -> None:
    package = (WRITTEN / "delivery.p7m").read_bytes()
    receipt, _ = open_receipt((WRITTEN / "receipt.p7m").read_bytes())
    assert receipt.accepted
    assert receipt.sha256 == hashlib.sha256(package).digest()
    assert receipt.package == inspect_package(package).content.header.id


def test_the_list_of_a_backup_is_read() -> None:
    manifest = parse_manifest(open_container((WRITTEN / "manifest.p7m").read_bytes()).content)
    assert (manifest.purpose, manifest.party.name) == (ArchivePurpose.BACKUP, "utility")
    assert {"store.db", "hsmkm.toml", "trust/anchors.pem"} <= {one.path for one in manifest.files}


def test_an_audit_log_is_a_chain_up_to_its_checkpoint() -> None:
    previous = bytes(32)
    rows = [json.loads(line) for line in (WRITTEN / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows, 1):
        record = row | {name: bytes.fromhex(row[name]) for name in ("effect", "previous", "hash")}
        assert (record["sequence"], record["previous"]) == (number, previous)
        assert record["hash"] == record_hash(record)
        previous = record["hash"]
    said = json.loads(open_container((WRITTEN / "checkpoint.p7m").read_bytes()).content)
    assert (said["sequence"], said["hash"]) == (len(rows), previous.hex())
