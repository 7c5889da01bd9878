"""A party has keys on P-256, and on P-384 too where it deals with suite 2; each place takes only what belongs there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hsmkm.config import load_settings
from hsmkm.errors import InputError, RefusedError
from hsmkm.pki.certificates import public_key, read_certificates
from hsmkm.pki.slots import P256, P384, SLOTS, curve_of
from hsmkm.steps import certify
from hsmkm.steps.issue import issue
from hsmkm.steps.party import open_party
from hsmkm.steps.register_party import PartyPlan, register_party
from hsmkm.steps.setup import make_token, write_home
from tests.realm import ACTOR, TITLES, Realm

ON_P256 = {"digital-signature", "package-signing", "key-agreement", "tls"}
ON_P384 = {"digital-signature-p384", "package-signing-p384", "key-agreement-p384"}


def make_party(realm: Realm, name: str, suites: str) -> None:
    """Make a home and its token with these suites in the settings."""
    write_home(realm.home(name), name, name, TITLES[name], ())
    settings = realm.home(name) / "hsmkm.toml"
    settings.write_text(settings.read_text().replace("suites = [0, 1, 2]", suites))
    make_token(load_settings(realm.home(name)), ACTOR)


def make_old_party(realm: Realm, name: str) -> None:
    """Make a home as the first release did: nothing of suites in its settings, no key on P-384 in its token."""
    make_party(realm, name, "suites = [0]")
    settings = realm.home(name) / "hsmkm.toml"
    lines = settings.read_text().splitlines(keepends=True)
    settings.write_text("".join(line for line in lines if not line.startswith("suites")))


def make_authorities(realm: Realm, curve: str) -> None:
    make_party(realm, "authority", "")
    with realm.open("authority") as party:
        certify.create_root(party, "Root", curve)
        certify.create_issuing(party, "issuing", "Issuing", curve)
        certify.create_issuing(party, "package-issuing", "Package Issuing", curve)
        certify.publish(party, realm.folder / "pki", 7)


def requested(realm: Realm, name: str) -> set[str]:
    """Let a party write its requests anew, and name them."""
    folder = realm.folder / "requests"
    shutil.rmtree(folder, ignore_errors=True)
    with realm.open(name) as party:
        return {made.profile for made in certify.request(party, (), folder)}


def issue_and_install(realm: Realm, name: str) -> set[str]:
    folder = realm.folder / "issued"
    with realm.open("authority") as party:
        issue(party, realm.folder / "requests", folder)
    with realm.open(name) as party:
        certify.place_anchor(party, realm.folder / "pki" / "root.pem")
        certify.update_trust(party, realm.folder / "pki")
        return {made.profile for made in certify.install(party, folder)}


def test_a_home_of_the_first_release_goes_on_under_an_authority_on_p_256(tmp_path: Path) -> None:
    realm = Realm(tmp_path)
    make_authorities(realm, P256)
    make_old_party(realm, "utility")
    assert requested(realm, "utility") == ON_P256
    assert issue_and_install(realm, "utility") == ON_P256
    make_token(load_settings(realm.home("utility")), ACTOR)
    assert requested(realm, "utility") == ON_P256 | ON_P384
    with realm.open("authority") as party, pytest.raises(InputError) as refused:
        issue(party, realm.folder / "requests", realm.folder / "more")
    assert {Path(fault.source).stem for fault in refused.value.faults} == ON_P384
    assert all("on P-256 certifies none there" in fault.text for fault in refused.value.faults)
    assert not (realm.folder / "more").exists()


def test_it_gets_keys_on_p_384_with_token_init_and_keeps_those_it_has(tmp_path: Path) -> None:
    realm = Realm(tmp_path)
    make_authorities(realm, P384)
    make_old_party(realm, "utility")
    requested(realm, "utility")
    issue_and_install(realm, "utility")
    with realm.open("utility") as party:
        before = party.vault.public_key("package-signing")
    made = make_token(load_settings(realm.home("utility")), ACTOR)
    assert {"digital-signature-p384", "package-signing-p384"} <= set(made.keys)
    assert requested(realm, "utility") == ON_P256 | ON_P384
    assert issue_and_install(realm, "utility") == ON_P256 | ON_P384
    with realm.open("utility") as party:
        assert party.vault.public_key("package-signing") == before
        for one in SLOTS:
            assert curve_of(public_key(certify.own_chain(party, one.name)[0])) == one.curve


def test_a_party_that_deals_with_no_suite_2_has_nothing_on_p_384(tmp_path: Path) -> None:
    realm = Realm(tmp_path)
    make_party(realm, "utility", "suites = [0, 1]")
    assert requested(realm, "utility") == ON_P256
    with open_party(realm.home("utility"), ACTOR) as party:
        assert not any(party.vault.has_ec_key(name) for name in ON_P384)


@pytest.mark.parametrize(("wanted", "given"), [("-p384", ""), ("", "-p384")])
def test_a_certificate_on_another_curve_than_its_name_says_is_not_pinned(realm: Realm, wanted: str, given: str) -> None:
    folder = realm.folder / "certificates" / "utility"
    shutil.copyfile(folder / f"key-agreement{given}.pem", folder / f"key-agreement{wanted}.pem")
    plan = PartyPlan("utility", "utility", (), "", "", folder, replace=True)
    with realm.open("factory") as party, pytest.raises(RefusedError) as refused:
        register_party(party, plan)
    curve = P384 if wanted else P256
    assert refused.value.reasons == (f"key-agreement{wanted}.pem: the key is not on {curve}",)


def test_a_request_on_p_256_gets_no_certificate_for_a_place_on_p_384(realm: Realm) -> None:
    requests = realm.folder / "requests" / "utility"
    (requests / "package-signing.csr").rename(requests / "package-signing-p384.csr")
    with realm.open("authority") as party, pytest.raises(InputError) as refused:
        issue(party, requests, realm.folder / "again")
    assert [fault.text for fault in refused.value.faults] == [
        "the key is on P-256, and package-signing-p384 is on P-384"
    ]


def test_another_partys_certificate_is_not_installed_beside_our_key(realm: Realm) -> None:
    with realm.open("utility") as party, pytest.raises(RefusedError) as refused:
        certify.install(party, realm.folder / "certificates" / "factory")
    named = {reason.partition(":")[0] for reason in refused.value.reasons if "not of this party's key" in reason}
    assert named == ON_P256 | ON_P384
    own = read_certificates(realm.folder / "certificates" / "utility" / "package-signing-p384.pem")
    assert read_certificates(realm.home("utility") / "certificates" / "package-signing-p384.pem") == own
