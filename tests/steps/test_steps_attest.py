"""Checkpoints of the audit chain outlive the certificate that they were signed with."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.pki.certificates import fingerprint, read_certificates
from hsmkm.steps import attest, certify
from hsmkm.steps.attest import checkpoint, verify_audit
from hsmkm.steps.issue import issue

if TYPE_CHECKING:
    from pathlib import Path

    from tests.realm import Realm


def renew(realm: Realm, name: str, folder: Path) -> None:
    with realm.open(name) as party:
        certify.request(party, ("127.0.0.1",), folder / "requests")
    with realm.open("authority") as party:
        issue(party, folder / "requests", folder / "issued")
    with realm.open(name) as party:
        certify.install(party, folder / "issued")


def test_a_checkpoint_of_before_a_renewal_still_verifies_and_shows_a_chain_cut_short(
    realm: Realm, tmp_path: Path
) -> None:
    kept = tmp_path / "checkpoint"
    with realm.open("utility") as party:
        sequence = checkpoint(party, kept)
        before = certify.own_chain(party, "package-signing")[0]
    renew(realm, "utility", tmp_path)
    with realm.open("utility") as party:
        assert fingerprint(certify.own_chain(party, "package-signing")[0]) != fingerprint(before)
        assert verify_audit(party, (kept,)) == []
        with party.store._engine.begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM audit WHERE sequence >= {sequence}")  # noqa: S608 - a test
        assert [item.row for item in verify_audit(party, (kept,)) if "cut short" in item.text] == [str(sequence)]


@pytest.mark.parametrize(("reason", "accepted"), [("superseded", True), ("keyCompromise", False)])
def test_a_checkpoint_is_believed_after_its_certificate_was_replaced_and_not_after_a_compromise(
    realm: Realm, tmp_path: Path, reason: str, *, accepted: bool
) -> None:
    kept, old = tmp_path / "checkpoint", realm.folder / "certificates" / "utility" / "package-signing.pem"
    assert len(read_certificates(old)) > 1
    with realm.open("utility") as party:
        checkpoint(party, kept)
    renew(realm, "utility", tmp_path)
    with realm.open("authority") as party:
        certify.revoke(party, old, reason)
        certify.publish(party, realm.folder / "pki", 7)
    with realm.open("utility") as party:
        certify.update_trust(party, realm.folder / "pki")
        if accepted:
            assert verify_audit(party, (kept,)) == []
        else:
            with pytest.raises(RefusedError, match="is not accepted for package-signing"):
                verify_audit(party, (kept,))


@pytest.mark.slow
def test_each_octet_of_a_checkpoint_that_is_flipped_is_refused(realm: Realm, tmp_path: Path) -> None:
    kept, taken = tmp_path / "checkpoint", []
    with realm.open("utility") as party:
        checkpoint(party, kept)
        data = kept.read_bytes()
        assert attest._checkpoint(party, kept)
        for place in range(len(data)):
            kept.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
            with contextlib.suppress(InputError, IntegrityError, RefusedError):
                attest._checkpoint(party, kept)
                taken.append(place)
    assert taken == []
