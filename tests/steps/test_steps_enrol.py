"""A meter enrols over DLMS from nothing to three certificates, is enrolled again, revoked, and refused afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.dlms.certificates import CertificateType
from hsmkm.dlms.types import KeyId, SecuritySuite, SystemTitle
from hsmkm.errors import RefusedError
from hsmkm.packages.receive import PackageRefusedError
from hsmkm.pki.certificates import read_certificates
from hsmkm.pki.requests import build_request
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import MeterState, load, save_to
from hsmkm.steps import certify
from hsmkm.steps.enrol import IMPORT, KEY_PAIR, import_certificates, remove_certificate, request_certificates
from hsmkm.steps.exporting import export
from hsmkm.steps.inject import inject
from hsmkm.steps.issue import issue
from hsmkm.steps.meter_certificates import METER_PROFILES, meter_certificate
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_file
from hsmkm.store import certificates, intents
from hsmkm.store.certificates import CertificateState
from tests.realm import title_of

if TYPE_CHECKING:
    from hsmkm.steps.party import Party
    from tests.realm import Realm

SERIAL = 71
TITLE = title_of(SERIAL)
CURVES = {1: "secp256r1", 2: "secp384r1"}


def anchor(realm: Realm) -> x509.Certificate:
    (root,) = read_certificates(realm.folder / "pki" / "root.pem")
    return root


@contextmanager
def injected(realm: Realm, suite: int) -> Iterator[Path]:
    """Run a meter that the factory made, with the project's root placed in it; give its state file."""
    keys = {KeyId[name.upper()]: value for name, value in realm.initial_keys(suite).items()}
    state = MeterState(SystemTitle.parse(TITLE), SecuritySuite(suite), keys, version=1)
    state.anchors.append(anchor(realm).public_bytes(Encoding.DER))
    path = realm.folder / "meter.json"
    save_to(path)(state)
    with serving([Meter(load(path), save=save_to(path))]) as (port,):
        with realm.open("factory") as party:
            provision(party, realm.order(SERIAL, suite=suite), "line")
            inject(party, TITLE, f"127.0.0.1:{port}")
        yield path


def issue_for(realm: Realm, requests: Path, out: Path) -> None:
    with realm.open("authority") as party:
        issue(party, requests, out)


def enrol(realm: Realm, turn: str = "one") -> Path:
    requests, issued = realm.folder / f"requests-{turn}", realm.folder / f"issued-{turn}"
    with realm.open("factory") as party:
        assert [item.state for item in request_certificates(party, TITLE, requests)] == ["requested"] * 3
    issue_for(realm, requests, issued)
    with realm.open("factory") as party:
        assert [item.state for item in import_certificates(party, TITLE, issued)] == ["imported"] * 3
    return issued


def refused(party: Party, folder: Path) -> list[str]:
    with pytest.raises(RefusedError) as raised:
        import_certificates(party, TITLE, folder)
    return list(raised.value.reasons)


def publish(realm: Realm, revoked: Path | None = None) -> None:
    with realm.open("authority") as party:
        if revoked is not None:
            certify.revoke(party, revoked, "keyCompromise")
        certify.publish(party, realm.folder / "pki", 7)
    with realm.open("factory") as party:
        certify.update_trust(party, realm.folder / "pki")


@pytest.mark.slow
@pytest.mark.parametrize("suite", [1, 2])
def test_a_meter_enrols_from_nothing_to_three_certificates_and_again(realm: Realm, suite: int) -> None:
    with injected(realm, suite) as path:
        first, second = enrol(realm), enrol(realm, "two")
        held = load(path)
    assert sorted(held.key_pairs) == [CertificateType(number) for number in (0, 1, 2)]
    assert held.new_key_pairs == {}
    for request in (realm.folder / "requests-two").iterdir():
        done = subprocess.run(
            ["openssl", "req", "-verify", "-noout", "-subject", "-in", str(request)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert TITLE in done.stdout
    with realm.open("factory") as party:
        for profile in METER_PROFILES:
            found = meter_certificate(party, TITLE, profile, suite)
            assert found == read_certificates(second / f"{TITLE}.{profile}.pem")[0]
            assert found.public_bytes(Encoding.DER) in held.certificates
            key = found.public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)
            assert key.curve.name == CURVES[suite]
        with party.store.read() as tx:
            states = {item.der: item.state for item in certificates.listing(tx, owner=TITLE)}
            assert intents.unfinished(tx, bytes.fromhex(TITLE)) == []
            imports = [str(item.outcome) for item in intents.listing(tx, bytes.fromhex(TITLE), IMPORT)]
            assert len(intents.listing(tx, bytes.fromhex(TITLE), KEY_PAIR)) == 6
        with pytest.raises(RefusedError, match="no certificate for digital signatures"):
            meter_certificate(party, TITLE, "digital-signature", 3 - suite)
    assert imports == ["imported"] * 9, "three, three, and once the issuing authority and our own two"
    old = [read_certificates(first / f"{TITLE}.{profile}.pem")[0] for profile in METER_PROFILES]
    assert {states[one.public_bytes(Encoding.DER)] for one in old} == {CertificateState.REPLACED}
    verify_with_openssl(realm, second)


def verify_with_openssl(realm: Realm, folder: Path) -> None:
    pki, lists = realm.folder / "pki", realm.folder / "lists.pem"
    lists.write_bytes(
        b"".join(
            x509.load_der_x509_crl(path.read_bytes()).public_bytes(Encoding.PEM) for path in sorted(pki.glob("*.crl"))
        )
    )
    for path in folder.iterdir():
        done = subprocess.run(
            [
                "openssl", "verify", "-x509_strict", "-crl_check_all", "-CAfile", str(pki / "root.pem"),
                "-CRLfile", str(lists), "-untrusted", str(pki / "intermediates.pem"), str(path),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_nothing_wrong_is_sent_into_a_meter(realm: Realm, tmp_path: Path) -> None:
    with injected(realm, 1) as path:
        before = enrol(realm)
        with realm.open("factory") as party:
            request_certificates(party, TITLE, realm.folder / "requests")
        key = ec.generate_private_key(ec.SECP256R1())
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        data = build_request(key, "digital-signature", TITLE).public_bytes(Encoding.DER)
        (foreign / f"{TITLE}.digital-signature.csr").write_bytes(data)
        issue_for(realm, foreign, tmp_path / "foreign-issued")
        issue_for(realm, realm.folder / "requests", tmp_path / "issued")
        swapped = tmp_path / "swapped"
        swapped.mkdir()
        (swapped / f"{TITLE}.key-agreement.pem").write_bytes(
            (tmp_path / "issued" / f"{TITLE}.digital-signature.pem").read_bytes()
        )
        with realm.open("factory") as party:
            not_asked = "digital-signature: the certificate is not of the key that the meter last asked for"
            assert refused(party, tmp_path / "foreign-issued") == [not_asked]
            assert not_asked in refused(party, before)
            assert any("key usage" in reason for reason in refused(party, swapped))
        publish(realm, tmp_path / "issued" / f"{TITLE}.tls.pem")
        held = load(path).certificates
        with realm.open("factory") as party:
            assert refused(party, tmp_path / "issued") == [f"tls: the certificate of '{TITLE}' is revoked"]
        assert load(path).certificates == held


@pytest.mark.slow
def test_a_revoked_certificate_is_used_nowhere_and_a_removed_one_neither(realm: Realm) -> None:
    with injected(realm, 1) as path:
        issued = enrol(realm)
        publish(realm, issued / f"{TITLE}.digital-signature.pem")
        with realm.open("factory") as party:
            with pytest.raises(RefusedError) as raised:
                meter_certificate(party, TITLE, "digital-signature", 1)
            assert f"the certificate of '{TITLE}' is revoked" in raised.value.reasons
            assert meter_certificate(party, TITLE, "key-agreement", 1).serial_number
            assert [item.state for item in remove_certificate(party, TITLE, "key-agreement")] == ["removed"]
            with pytest.raises(RefusedError, match="no certificate for key agreement"):
                meter_certificate(party, TITLE, "key-agreement", 1)
        left = [x509.load_der_x509_certificate(der) for der in load(path).certificates]
        assert len([one for one in left if TITLE in one.subject.rfc4514_string()]) == 2


@pytest.mark.slow
def test_a_meter_of_suite_0_has_no_certificates(realm: Realm) -> None:
    with injected(realm, 0), realm.open("factory") as party:
        with pytest.raises(RefusedError, match="its suite is 0"):
            request_certificates(party, TITLE, realm.folder / "requests")
        assert not (realm.folder / "requests" / f"{TITLE}.tls.csr").exists()


@pytest.mark.slow
def test_a_meters_certificates_travel_with_its_keys_and_a_revoked_one_refuses_the_package(realm: Realm) -> None:
    with injected(realm, 1):
        issued = enrol(realm)
        with realm.open("factory") as party:
            early = export(party, "delivery", "utility", (TITLE,), None).path
        with realm.open("authority") as party:
            certify.revoke(party, issued / f"{TITLE}.tls.pem", "keyCompromise")
            certify.publish(party, realm.folder / "pki", 7)
        with realm.open("utility") as party:
            certify.update_trust(party, realm.folder / "pki")
            with pytest.raises(PackageRefusedError) as raised:
                receive_file(party, early)
        revoked = f"a certificate of meter {TITLE}: the certificate of '{TITLE}' is revoked"
        assert raised.value.reasons == (revoked,)
        with realm.open("factory") as party:
            certify.update_trust(party, realm.folder / "pki")
            sent = export(party, "delivery", "utility", (TITLE,), None).path
        with realm.open("utility") as party:
            receive_file(party, sent)
            assert meter_certificate(party, TITLE, "digital-signature", 1).serial_number
            with pytest.raises(RefusedError, match="no certificate for TLS"):
                meter_certificate(party, TITLE, "tls", 1)
