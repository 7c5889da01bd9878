"""Certificates and lists in files are linted by our rules and by pkilint; an authority has the arc of its settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hsmkm.errors import InputError, RefusedError
from hsmkm.pki.certificates import read_certificates, write_certificates
from hsmkm.steps import certify
from hsmkm.steps.issue import issue
from hsmkm.steps.lint_files import lint_files
from hsmkm.steps.party import open_party
from hsmkm.steps.setup import make_token, set_in_file, write_home
from tests.command import failed, results
from tests.realm import Realm

OWN_ARC = "1.3.6.1.4.1.32473.5"


@pytest.mark.slow
def test_what_a_party_was_issued_is_linted_with_its_chain_and_lists(realm: Realm) -> None:
    files = [*sorted((realm.folder / "certificates" / "utility").glob("*.pem")), *(realm.folder / "pki").glob("*.crl")]
    done = realm.cli("utility", "pki", "lint", *map(str, files))
    assert done.returncode == 0, done.stderr
    rows = results(done)
    assert {row["linter"] for row in rows} == {"hsmkm", "pkilint"}
    assert {row["finding"] for row in rows} == {"no finding"}
    assert {Path(row["file"]).name for row in rows} == {path.name for path in files}


def test_an_issuer_that_nobody_knows_is_an_error(realm: Realm, tmp_path: Path) -> None:
    leaf = read_certificates(realm.folder / "certificates" / "utility" / "tls.pem")[0]
    alone = tmp_path / "leaf.pem"
    write_certificates(alone, [leaf])
    root, between = realm.folder / "pki" / "root.pem", realm.folder / "pki" / "intermediates.pem"
    assert {item.finding for item in lint_files(tmp_path, [alone], [root, between])} == {"no finding"}
    home = realm.home("nowhere")
    assert not home.exists()
    error, reasons = failed(realm.cli("nowhere", "pki", "lint", str(alone)), 1)
    assert error == "1 error(s) found"
    assert reasons == [f"{alone}: 5554490000000004: its issuer 'Test Issuing' is not at hand, or did not sign it"]


@pytest.mark.parametrize("content", [b"", b"-----BEGIN X509 CRL-----\n", b"\x30\x00", b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_neither_is_a_fault(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pem"
    path.write_bytes(content)
    with pytest.raises(InputError):
        lint_files(tmp_path, [path], [])


def test_an_authority_certifies_under_the_arc_of_its_settings_and_a_party_must_know_it(
    realm: Realm, tmp_path: Path
) -> None:
    home, pki = tmp_path / "other", tmp_path / "pki"
    settings = write_home(home, "other", "authority", "4155540000000009", ())
    set_in_file(home / "hsmkm.toml", "pki", "policy_arc", OWN_ARC)
    make_token(settings, "tester")
    with open_party(home, "tester") as party:
        certify.create_root(party, "Other Root", "P-384")
        certify.create_issuing(party, "issuing", "Other Issuing", "P-384")
        certify.create_issuing(party, "package-issuing", "Other Package Issuing", "P-384")
        certify.publish(party, pki, 7)
        issue(party, realm.folder / "requests" / "utility", tmp_path / "issued")
    shutil.rmtree(realm.home("utility") / "trust")
    with realm.open("utility") as party:
        certify.place_anchor(party, pki / "root.pem")
        certify.update_trust(party, pki)
        with pytest.raises(RefusedError) as raised:
            certify.install(party, tmp_path / "issued")
        assert "tls: the certificate of '5554490000000004' lacks the policy of tls" in raised.value.reasons
    set_in_file(realm.home("utility") / "hsmkm.toml", "pki", "policy_arc", OWN_ARC)
    with realm.open("utility") as party:
        assert len(certify.install(party, tmp_path / "issued")) == 7
