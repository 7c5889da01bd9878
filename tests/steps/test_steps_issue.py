"""An authority issues in bulk: all or none, in batches, no key for two things, no serial number twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import InputError, TokenUnreachableError
from hsmkm.pki.certificates import read_certificates
from hsmkm.pki.profiles import NO_END
from hsmkm.pki.requests import build_request
from hsmkm.steps import certify
from hsmkm.steps import issue as steps_issue
from hsmkm.steps.issue import BATCH, issue
from hsmkm.store import audit, certificates
from hsmkm.store.certificates import CertificateState
from hsmkm.store.check import check
from tests.realm import title_of

if TYPE_CHECKING:
    from hsmkm.pki.authority import Draft
    from hsmkm.steps.hands import Hand
    from hsmkm.steps.party import Party
    from hsmkm.steps.signatures import Terms
    from tests.realm import Realm

PROFILES = ("digital-signature", "key-agreement", "tls")
KILLED = 9
DIES_WHILE_SIGNING = """
import os, signal, sys
from pathlib import Path
from hsmkm.pki import authority
from hsmkm.steps import issue as steps_issue
from hsmkm.steps.issue import issue
from hsmkm.steps.party import open_party

def sign(linted, signer):
    if len(signed) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    signed.append(linted)
    return real(linted, signer)

signed, real = [], authority.sign
authority.sign = sign
home, folder, out = map(Path, sys.argv[1:4])
steps_issue.BATCH = int(sys.argv[4])
with open_party(home, "tester") as party:
    issue(party, folder, out)
"""


def write_request(
    folder: Path, profile: str, title: str, key: ec.EllipticCurvePrivateKey | None = None, name: str = ""
) -> ec.EllipticCurvePrivateKey:
    folder.mkdir(exist_ok=True)
    made = key or ec.generate_private_key(ec.SECP256R1())
    path = folder / f"{name or f'{title}.{profile}'}.csr"
    path.write_bytes(build_request(made, profile, title).public_bytes(Encoding.DER))
    return made


def faults(party: Party, folder: Path, out: Path) -> list[str]:
    with pytest.raises(InputError) as raised:
        issue(party, folder, out)
    assert not out.exists()
    return [f"{Path(fault.source).name}: {fault.text}" for fault in raised.value.faults]


def issued(party: Party) -> list[bytes]:
    with party.store.read() as tx:
        assert list(check(tx)) == []
        return [row["serial"] for row in tx.all(certificates.ISSUANCES.everything())]


@pytest.mark.parametrize("by_workers", [False, True])
def test_a_folder_of_meters_is_issued_in_batches(
    realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_workers: bool
) -> None:
    monkeypatch.setattr(steps_issue, "BATCH", 50)
    monkeypatch.setenv("HSMKM_WORKERS_PROCESSES", "2")
    monkeypatch.setenv("HSMKM_WORKERS_BATCH", "20" if by_workers else "1000")
    folder, out = tmp_path / "requests", tmp_path / "out"
    for serial in range(1, 43):
        for profile in PROFILES:
            write_request(folder, profile, title_of(serial))
    with realm.open("authority") as party:
        made = issue(party, folder, out)
        with party.store.read() as tx:
            assert list(check(tx)) == []
            log = [item for item in audit.log(tx, limit=1000) if item.detail.get("certificates")]
            known = {item.der for item in certificates.listing(tx)}
    counts = [(item.action, item.detail["certificates"]) for item in log[-6:]]
    assert sorted(counts) == [(action, count) for action in ("pki-issue", "pki-issued") for count in (26, 50, 50)]
    assert all("holders" in item.subject for item in log[-6:])
    assert [item.path.name for item in made] == sorted(f"{path.stem}.pem" for path in folder.iterdir())
    for item in made:
        leaf, issuing, *_ = read_certificates(item.path)
        leaf.verify_directly_issued_by(issuing)
        assert leaf.public_bytes(Encoding.DER) in known
        assert f"{leaf.serial_number:X}" == item.serial
    assert len({item.serial for item in made}) == len(made)


@pytest.mark.slow
def test_a_worker_that_dies_leaves_what_was_recorded_and_the_next_run_issues_the_rest(
    realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_issue, "BATCH", 4)
    monkeypatch.setenv("HSMKM_WORKERS_PROCESSES", "2")
    monkeypatch.setenv("HSMKM_WORKERS_BATCH", "2")
    folder, out = tmp_path / "requests", tmp_path / "out"
    for serial in range(1, 11):
        write_request(folder, "digital-signature", title_of(serial))
    with monkeypatch.context() as patched:
        patched.setattr(steps_issue, "sign_drafts", _dies)
        with realm.open("authority") as party, pytest.raises(TokenUnreachableError):
            issue(party, folder, out)
        assert not list(out.glob("*"))
    with realm.open("authority") as party:
        made = issue(party, folder, out)
        assert len({item.serial for item in made}) == len(made) == 10
        assert len(set(issued(party))) == len(issued(party))


def _dies(_hand: Hand, _terms: Terms, _drafts: Sequence[Draft]) -> list[bytes]:
    """End the worker as a crash does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed processes do not go on")


def test_a_device_may_have_certificates_without_an_end(realm: Realm, tmp_path: Path) -> None:
    for profile in PROFILES:
        write_request(tmp_path / "requests", profile, title_of(1))
    with realm.open("authority") as party:
        made = issue(party, tmp_path / "requests", tmp_path / "out", without_end=True)
    ends = {item.profile: read_certificates(item.path)[0].not_valid_after_utc for item in made}
    assert [name for name, end in ends.items() if end == NO_END] == ["digital-signature", "key-agreement"]


def test_no_key_is_certified_for_two_things(realm: Realm, tmp_path: Path) -> None:
    title, other = title_of(1), title_of(2)
    with realm.open("authority") as party:
        key = write_request(tmp_path / "first", "digital-signature", title)
        issue(party, tmp_path / "first", tmp_path / "first-out")
        write_request(tmp_path / "again", "digital-signature", title, key)
        issue(party, tmp_path / "again", tmp_path / "again-out")
        write_request(tmp_path / "both", "key-agreement", title, key)
        write_request(tmp_path / "other", "digital-signature", other, key)
        twice = write_request(tmp_path / "twice", "digital-signature", other)
        write_request(tmp_path / "twice", "key-agreement", other, twice)
        reason = f"the key is certified for digital-signature of {title} already"
        assert faults(party, tmp_path / "both", tmp_path / "out") == [f"{title}.key-agreement.csr: {reason}"]
        assert faults(party, tmp_path / "other", tmp_path / "out") == [f"{other}.digital-signature.csr: {reason}"]
        reason = f"the key is also that of {other}.digital-signature.csr"
        assert faults(party, tmp_path / "twice", tmp_path / "out") == [f"{other}.key-agreement.csr: {reason}"]


def test_keys_that_the_first_release_certified_are_known(realm: Realm, tmp_path: Path) -> None:
    with realm.open("authority") as party:
        key = write_request(tmp_path / "first", "digital-signature", title_of(1))
        issue(party, tmp_path / "first", tmp_path / "first-out")
        with party.store._engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM certified_keys")
        write_request(tmp_path / "both", "key-agreement", title_of(1), key)
        assert "certified for digital-signature" in faults(party, tmp_path / "both", tmp_path / "out")[0]


def test_a_request_in_somebody_elses_name_is_refused_with_everything_else(realm: Realm, tmp_path: Path) -> None:
    folder = tmp_path / "requests"
    write_request(folder, "digital-signature", title_of(1))
    write_request(folder, "tls", title_of(1), name=f"{title_of(2)}.tls")
    write_request(folder, "tls", title_of(1), name="meter.tls")
    write_request(folder, "tls", title_of(1), name=f"{title_of(1)}.other")
    with realm.open("authority") as party:
        before = issued(party)
        found = faults(party, folder, tmp_path / "out")
        assert issued(party) == before
    assert len(found) == 3
    assert f"{title_of(2)}.tls.csr: the subject is '{title_of(1)}' and not '{title_of(2)}'" in found


def die_at_third(realm: Realm, folder: Path, out: Path, batch: int) -> None:
    """Kill a run of the command before its third signature, in batches of this size."""
    arguments = [str(realm.home("authority")), str(folder), str(out), str(batch)]
    done = subprocess.run([sys.executable, "-c", DIES_WHILE_SIGNING, *arguments], env=os.environ, check=False)
    assert done.returncode == -KILLED


@pytest.mark.slow
@pytest.mark.parametrize("revoked", [False, True])
def test_a_run_given_again_goes_on_with_what_it_completed(realm: Realm, tmp_path: Path, *, revoked: bool) -> None:
    folder, out = tmp_path / "requests", tmp_path / "out"
    for serial in range(1, 6):
        write_request(folder, "digital-signature", title_of(serial))
    die_at_third(realm, folder, out, 2)
    completed = {path.name: read_certificates(path)[0].serial_number for path in out.iterdir()}
    assert len(completed) == 2
    with realm.open("authority") as party:
        first = min(completed)
        if revoked:
            certify.revoke(party, out / first, "superseded")
        (out / first).unlink()
        before = issued(party)
        made = {item.path.name: int(item.serial, 16) for item in issue(party, folder, out)}
        kept = {name for name in completed if made[name] == completed[name]}
        assert kept == (set(completed) - {first} if revoked else set(completed))
        assert len(issued(party)) == len(before) + 5 - len(kept)
        again = {int(item.serial, 16) for item in issue(party, folder, out)}
    assert not again & set(made.values()), "a run that came to its end is over"


@pytest.mark.slow
def test_a_kill_between_record_and_signature_and_a_repeat_use_no_serial_number_twice(
    realm: Realm, tmp_path: Path
) -> None:
    folder, out = tmp_path / "requests", tmp_path / "out"
    for serial in range(1, 6):
        write_request(folder, "digital-signature", title_of(serial))
    with realm.open("authority") as party:
        before = issued(party)
    die_at_third(realm, folder, out, BATCH)
    assert not out.exists()
    with realm.open("authority") as party:
        planned = set(issued(party)) - set(before)
        made = {bytes.fromhex(f"{int(item.serial, 16):040x}") for item in issue(party, folder, out)}
        assert len(planned) == len(made) == 5
        assert not planned & made
        assert len(issued(party)) == len(set(issued(party))) == len(before) + 10
        with party.store.read() as tx:
            rows = certificates.ISSUANCES.rows(tx, certificates.ISSUANCES.everything())
    states = {row["serial"]: row["state"] for row in rows}
    assert {states[serial] for serial in planned} == {CertificateState.PLANNED}
    assert {states[serial] for serial in made} == {CertificateState.VALID}
