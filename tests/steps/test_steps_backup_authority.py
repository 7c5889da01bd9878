"""The backup of an authority: all but its keys, which never leave the token, comes back where that token is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography import x509

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.steps import attest, certify
from hsmkm.steps.backup import backup, restore
from hsmkm.steps.issue import issue
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.recover import open_recovery, recover_store
from hsmkm.store import certificates
from tests.command import failed
from tests.realm import ACTOR, Realm, copy_realm


@pytest.fixture(scope="module")
def certified(realm_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Realm:
    """A realm whose authority gave itself the certificate that its backups are signed with."""
    realm = copy_realm(realm_template, tmp_path_factory.mktemp("certified") / "realm")
    requests, issued = realm.folder / "own-requests", realm.folder / "own"
    with realm.open("authority") as party:
        certify.place_anchor(party, realm.folder / "pki" / "root.pem")
        certify.update_trust(party, realm.folder / "pki")
        assert [one.name for one in certify.requested_slots(party)] == ["package-signing"]
        certify.request(party, (), requests)
        issue(party, requests, issued)
        certify.install(party, issued)
    return realm


@pytest.fixture
def realm(certified: Realm, tmp_path: Path) -> Realm:
    return copy_realm(certified, tmp_path / "realm")


def with_token(realm: Realm, host: Path) -> Path:
    """An empty host with the authority's token as it is now."""
    shutil.copytree(realm.home("authority") / "token", host / "token")
    return host


def written(realm: Realm) -> Path:
    path = realm.folder / "authority.backup"
    with realm.open("authority") as party:
        backup(party, path)
    return path


def listed(party: Party) -> list[tuple[str, bytes, str]]:
    with party.store.read() as tx:
        return sorted((item.issuer, item.serial, item.state.value) for item in certificates.listing(tx))


def revoked(folder: Path) -> tuple[int, set[int]]:
    """The number of the newest list of the issuing authority, and the serial numbers on it."""
    crl = x509.load_der_x509_crl((folder / "issuing.crl").read_bytes())
    number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    return number, {entry.serial_number for entry in crl}


def test_it_comes_back_with_all_that_it_issued_and_goes_on_issuing_and_revoking(realm: Realm, tmp_path: Path) -> None:
    path = written(realm)
    with realm.open("authority") as party:
        before = listed(party)
    host = with_token(realm, tmp_path / "host")
    assert restore(host, path, ACTOR).party == "authority"
    with open_party(host, ACTOR) as party:
        assert listed(party) == before
        assert attest.verify_audit(party, ()) == []
        gone = certify.revoke(party, realm.folder / "certificates" / "utility" / "tls.pem", "keyCompromise")
        certify.publish(party, tmp_path / "pki", 7)
        assert issue(party, realm.folder / "requests" / "utility", tmp_path / "issued")
    number, serials = revoked(tmp_path / "pki")
    assert serials == {int(gone.serial, 16)}
    assert number > revoked(realm.folder / "pki")[0]


def test_a_checkpoint_of_its_audit_log_is_signed_with_the_same_key(realm: Realm, tmp_path: Path) -> None:
    with realm.open("authority") as party:
        attest.checkpoint(party, tmp_path / "checkpoint")
        assert attest.verify_audit(party, (tmp_path / "checkpoint",)) == []


def test_an_older_one_goes_on_above_every_list_that_was_published_since(realm: Realm, tmp_path: Path) -> None:
    path = written(realm)
    with realm.open("authority") as party:
        for _ in range(3):
            certify.publish(party, tmp_path / "later", 7)
    host = with_token(realm, tmp_path / "host")
    restore(host, path, ACTOR)
    with pytest.raises(IntegrityError) as raised, open_party(host, ACTOR):
        pass
    assert "hsmkm store recover" in raised.value.hint
    with open_recovery(host, ACTOR) as party:
        recover_store(party, None)
    with open_party(host, ACTOR) as party:
        certify.publish(party, tmp_path / "now", 7)
    assert revoked(tmp_path / "now")[0] > revoked(tmp_path / "later")[0]


def test_a_token_that_lost_the_key_of_an_authority_is_not_its_token(realm: Realm, tmp_path: Path) -> None:
    path = written(realm)
    with realm.open("authority") as party:
        party.vault.key_pairs.destroy("ca:issuing")
    host = with_token(realm, tmp_path / "host")
    with pytest.raises(RefusedError, match="not that of these authorities") as raised:
        restore(host, path, ACTOR)
    assert raised.value.reasons == ("the key of issuing is not in it",)
    assert [one.name for one in host.iterdir()] == ["token"]


def test_an_authority_without_that_certificate_says_what_is_missing(realm_template: Realm, tmp_path: Path) -> None:
    realm = copy_realm(realm_template, tmp_path / "bare")
    error, _ = failed(realm.cli("authority", "store", "backup", str(tmp_path / "x")), 1)
    assert "no package-signing certificate" in error
    assert not (tmp_path / "x").exists()
