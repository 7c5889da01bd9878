"""Stores of earlier programs, written by them, are brought to the newest schema and stay readable."""

from __future__ import annotations

import hashlib
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.store import (
    audit,
    campaigns,
    certificates,
    certified_keys,
    check,
    holders,
    intents,
    key_sets,
    meters,
    models,
    orders,
    renewals,
    sealing,
)
from hsmkm.store.campaign import CampaignState
from hsmkm.store.certificates import CertificateState
from hsmkm.store.renewals import RenewalState
from hsmkm.store.store import Store

if TYPE_CHECKING:
    from tests.store.conftest import SoftwareAuthenticator

FIXTURES = Path(__file__).parent / "fixtures"
TITLE = bytes.fromhex("5554490000000001")


def written_by(tmp_path: Path, authenticator: SoftwareAuthenticator, schema: str, then: str = "") -> str:
    """Give a store as a program of this schema wrote it; its integrity key was 32 zero octets."""
    authenticator.keys = {1: bytes(32)}
    path = tmp_path / "first.db"
    with sqlite3.connect(path) as connection:
        connection.executescript((FIXTURES / f"{schema}.sql").read_text(encoding="utf-8"))
        connection.executescript(then)
    connection.close()
    path.chmod(0o600)
    return f"sqlite:{path}"


@pytest.fixture
def first_release(tmp_path: Path, authenticator: SoftwareAuthenticator) -> str:
    return written_by(tmp_path, authenticator, "0001")


@pytest.mark.parametrize("schema", ["0006", "0007", "0008", "0010"])
def test_what_had_no_mac_is_sealed_as_it_is_found_and_every_row_has_one_then(
    tmp_path: Path, authenticator: SoftwareAuthenticator, schema: str
) -> None:
    url = written_by(tmp_path, authenticator, schema)
    with pytest.raises(RefusedError, match=f"older schema {schema}"):
        Store.open(url, authenticator, "tester")
    assert sealing.upgrade(url, authenticator, "tester", None)
    assert not sealing.upgrade(url, authenticator, "tester", None)
    with Store.open(url, authenticator, "tester") as store, store.read() as tx:
        assert list(check.check(tx)) == []
        assert list(audit.verify(tx)) == []
        for rows in (*check.AUTHENTICATED, meters.ROWS):
            assert all(row["mac"] for row in tx.all(rows.everything()) if rows is not meters.ROWS)
        (order,) = orders.listing(tx)
        assert (order.name, order.state) == ("a.csv", "done")
        (renewal,) = renewals.unfinished(tx, TITLE)
        assert renewal.state is RenewalState.SENT
        assert [intent.outcome for intent in intents.listing(tx, TITLE, "key-transfer")] == ["acknowledged", None]
        assert len(holders.of_package(tx, "id-1")) == len(holders.of_package(tx, "id-2")) == 8
        assert certificates.next_crl_number(tx, "CN=i") == 3
        kept, fresh = (key_set for key_set, _ in key_sets.for_meter(tx, TITLE))
        assert kept.destroy_after == datetime(2026, 3, 8, 12, tzinfo=UTC)
        assert fresh.destroy_after is None
        assert models.listing(tx) == [("uti-1", True), ("uti-2", False)]
        assert models.get_keys(tx, "uti-1") is not None


def test_campaigns_are_sealed_as_they_are_found_and_go_on(tmp_path: Path, authenticator: SoftwareAuthenticator) -> None:
    url = written_by(tmp_path, authenticator, "0010")
    assert sealing.upgrade(url, authenticator, "tester", None)
    with Store.open(url, authenticator, "tester") as store:
        with store.begin("campaign-finish", "spring", {}) as tx:
            assert [item.state for item in campaigns.listing(tx)] == [CampaignState.RUNNING, CampaignState.CREATED]
            spring = campaigns.find(tx, "spring")
            assert (spring.settings, spring.paced) == ({"slice": 4}, datetime(2026, 3, 1, 12, tzinfo=UTC))
            assert campaigns.claim(tx, spring.id, "worker", 5, 60) is not None
            campaigns.turn(tx, spring.id, CampaignState.FINISHED)
        with store.read() as tx:
            assert list(check.check(tx)) == []


@pytest.mark.parametrize(
    ("altered", "row"),
    [
        ("UPDATE models SET keys = zeroblob(length(keys))", "models uti-1"),
        ("UPDATE models SET suite = 2", "models uti-1"),
        ("UPDATE models SET mac = NULL", "models uti-1"),
        ("UPDATE key_sets SET storage_key = 2", f"key_sets {TITLE.hex().upper()}/0/1/1"),
    ],
)
def test_what_had_a_mac_is_not_sealed_unless_it_fits_it(
    tmp_path: Path, authenticator: SoftwareAuthenticator, altered: str, row: str
) -> None:
    url = written_by(tmp_path, authenticator, "0006", altered)
    with pytest.raises(IntegrityError, match=row):
        sealing.upgrade(url, authenticator, "tester", None)


def test_a_crash_before_the_sealing_leaves_a_store_that_is_sealed_later(
    tmp_path: Path, authenticator: SoftwareAuthenticator
) -> None:
    url = written_by(tmp_path, authenticator, "0008")
    Store.create(url)
    with pytest.raises(RefusedError, match="must be upgraded with the token"):
        Store.open(url, authenticator, "tester")
    assert sealing.upgrade(url, authenticator, "tester", None)
    with Store.open(url, authenticator, "tester") as store, store.read() as tx:
        assert list(check.check(tx)) == []


def test_it_is_not_used_before_it_is_upgraded(first_release: str, authenticator: SoftwareAuthenticator) -> None:
    with pytest.raises(RefusedError, match="older schema 0001"):
        Store.open(first_release, authenticator, "tester")


def test_everything_in_it_is_read_and_fits_its_mac(first_release: str, authenticator: SoftwareAuthenticator) -> None:
    assert sealing.upgrade(first_release, authenticator, "tester", None)
    with Store.open(first_release, authenticator, "tester") as store, store.read() as tx:
        assert list(check.check(tx)) == []
        assert list(audit.verify(tx)) == []
        assert meters.require(tx, TITLE).serial == "00000001"
        assert [state.value for _, state in key_sets.for_meter(tx, TITLE)] == ["pre-active"]
        (issued,) = certificates.listing(tx)
        found = certificates.issuance(tx, issued.issuer, issued.serial)
        assert found is not None
        assert found.state is CertificateState.VALID
        assert certificates.issuance(tx, issued.issuer, b"\x07" * 20) is not None


def test_its_certificates_are_offered_until_the_first_key_is_claimed(
    first_release: str, authenticator: SoftwareAuthenticator
) -> None:
    assert sealing.upgrade(first_release, authenticator, "tester", None)
    with Store.open(first_release, authenticator, "tester") as store:
        with store.read() as tx:
            assert list(certified_keys.unclaimed(tx)) == [(item.der, item.profile) for item in certificates.listing(tx)]
        with store.begin("pki-issue", "x", {}) as tx:
            certified_keys.claim(tx, hashlib.sha256(b"one").digest(), "tls", "utility")
        with store.read() as tx:
            assert list(certified_keys.unclaimed(tx)) == []


def test_a_key_is_for_one_profile_and_one_holder(store: Store) -> None:
    one, other = hashlib.sha256(b"one").digest(), hashlib.sha256(b"other").digest()
    with store.begin("pki-issue", "x", {}) as tx:
        certified_keys.claim(tx, one, "digital-signature", "4D4D4D0000BC614E")
        certified_keys.claim(tx, one, "digital-signature", "4D4D4D0000BC614E")
        certified_keys.claim(tx, other, "key-agreement", "4D4D4D0000BC614E")
        with pytest.raises(RefusedError, match="is certified for digital-signature of 4D4D4D0000BC614E already"):
            certified_keys.claim(tx, one, "key-agreement", "4D4D4D0000BC614E")
        with pytest.raises(RefusedError, match="already"):
            certified_keys.claim(tx, one, "digital-signature", "4D4D4D0000BC614F")
