"""A store of the first release, written by it, is brought to the newest schema and stays readable."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import RefusedError
from hsmkm.store import audit, certificates, certified_keys, check, key_sets, meters, sealing
from hsmkm.store.certificates import CertificateState
from hsmkm.store.store import Store

if TYPE_CHECKING:
    from tests.store.conftest import SoftwareAuthenticator

FIRST = Path(__file__).parent / "fixtures" / "0001.sql"
TITLE = bytes.fromhex("5554490000000001")


@pytest.fixture
def first_release(tmp_path: Path, authenticator: SoftwareAuthenticator) -> str:
    """The store as it was; its integrity key was 32 zero octets."""
    authenticator.keys = {1: bytes(32)}
    path = tmp_path / "first.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST.read_text(encoding="utf-8"))
    connection.close()
    path.chmod(0o600)
    return f"sqlite:{path}"


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
