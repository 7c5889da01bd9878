"""A PKI whose every key lies in NSS softoken: authorities, requests, certificates, lists, and meters that enrol."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.pki.certificates import public_key, read_certificates
from hsmkm.pki.slots import slots_for
from hsmkm.steps import certify
from hsmkm.steps.ceremony import create_root_with_transcript
from hsmkm.steps.exporting import export
from hsmkm.steps.meter_certificates import METER_PROFILES, meter_certificate
from hsmkm.steps.party import open_party
from hsmkm.steps.provision import provision
from hsmkm.steps.setup import make_token, write_home
from tests.realm import ACTOR, TITLES, Realm, title_of
from tests.steps.test_steps_enrol import TITLE, enrol, injected, publish, verify_with_openssl

if TYPE_CHECKING:
    from pathlib import Path

PARTIES = [name for name in TITLES if name != "authority"]


@pytest.fixture
def nss_realm(realm_on_nss: Callable[..., Realm]) -> Realm:
    return realm_on_nss()


def openssl_accepts_request(path: Path) -> bool:
    command = ["openssl", "req", "-verify", "-noout", "-in", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_openssl_accepts_every_request_and_chain(nss_realm: Realm) -> None:
    for name in PARTIES:
        requests = sorted((nss_realm.folder / "requests" / name).iterdir())
        assert len(requests) == len(slots_for((0, 1, 2)))
        assert [path.name for path in requests if not openssl_accepts_request(path)] == []
        verify_with_openssl(nss_realm, nss_realm.folder / "certificates" / name)


@pytest.mark.parametrize("name", ["authority", "factory"])
def test_each_certified_key_is_in_the_token_for_one_use(nss_realm: Realm, name: str) -> None:
    folder = nss_realm.home(name) / "certificates"
    kept = {path.stem: public_key(read_certificates(path)[0]) for path in folder.glob("*.pem") if path.stem != "tls"}
    assert len(kept) == (3 if name == "authority" else 6)
    with nss_realm.open(name) as party:
        for label, public in kept.items():
            own = f"ca:{label}" if name == "authority" else label
            assert party.vault.public_key(own) == public
            right, wrong = ("derive", "sign") if label.startswith("key-agreement") else ("sign", "derive")
            party.vault.key_pairs.private(own, right)
            with pytest.raises(IntegrityError, match="other attributes"):
                party.vault.key_pairs.private(own, wrong)
            told = party.vault.key_attributes(own)
            assert told["CKA_SENSITIVE"]
            assert not told["CKA_EXTRACTABLE"]


@pytest.mark.slow
@pytest.mark.parametrize("suite", [1, 2])
def test_a_meter_enrols_and_is_revoked(nss_realm: Realm, suite: int) -> None:
    with injected(nss_realm, suite):
        issued = enrol(nss_realm)
    verify_with_openssl(nss_realm, issued)
    with nss_realm.open("factory") as party:
        for profile in METER_PROFILES:
            assert (
                meter_certificate(party, TITLE, profile, suite)
                == read_certificates(issued / f"{TITLE}.{profile}.pem")[0]
            )
    publish(nss_realm, issued / f"{TITLE}.digital-signature.pem")
    with nss_realm.open("factory") as party, pytest.raises(RefusedError, match="is not accepted") as refused:
        meter_certificate(party, TITLE, "digital-signature", suite)
    assert any("revoked" in reason for reason in refused.value.reasons)


def test_a_partys_revoked_certificate_gets_no_package(nss_realm: Realm) -> None:
    publish(nss_realm, nss_realm.folder / "certificates" / "utility" / "key-agreement.pem")
    with nss_realm.open("factory") as party:
        provision(party, nss_realm.order(1), "line")
        with pytest.raises(RefusedError, match="may not receive a package") as refused:
            export(party, "delivery", "utility", (title_of(1),), None)
    assert any("revoked" in reason for reason in refused.value.reasons)


@pytest.mark.usefixtures("nss_installed")
def test_a_ceremony_tells_what_the_token_does_not_store(tmp_path: Path) -> None:
    home = tmp_path / "authority"
    make_token(write_home(home, "authority", "authority", TITLES["authority"], (), "nss"), ACTOR)
    with open_party(home, ACTOR) as party:
        create_root_with_transcript(party, "Example Root", "P-384", tmp_path / "transcript.txt")
        with pytest.raises(RefusedError):
            certify.create_root(party, "Another Root", "P-384")
    told = (tmp_path / "transcript.txt").read_text(encoding="utf-8")
    assert "CKA_NEVER_EXTRACTABLE  true" in told
    assert re.search(r"CKA_COPYABLE +not stored by this token", told)
