"""Certificates are renewed at two thirds of their life: the party's by itself, the meters' as a fleet."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from hsmkm.errors import TokenUnreachableError
from hsmkm.pki.certificates import fingerprint, public_key, read_certificates
from hsmkm.steps import certify, renew_certificates
from hsmkm.steps.issue import issue
from hsmkm.steps.meter_certificates import meter_certificate
from hsmkm.steps.party import utc_now
from hsmkm.steps.register_party import PartyPlan, register_party
from hsmkm.steps.renew_certificates import import_meters, request_meters, request_own
from tests.realm import title_of
from tests.steps.test_steps_enrol import TITLE, enrol, injected

if TYPE_CHECKING:
    from pathlib import Path

    from hsmkm.steps.party import Party
    from hsmkm.steps.results import Enrolled
    from tests.realm import Realm


def in_days(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let the renewal believe that so many days have passed."""

    def later() -> datetime:
        return utc_now() + timedelta(days=days)

    monkeypatch.setattr(renew_certificates, "utc_now", later)


def test_a_party_asks_for_what_is_due_and_nothing_else_under_its_keys_and_names(
    realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with realm.open("utility") as party:
        assert request_own(party, tmp_path / "none", 30) == []
        in_days(monkeypatch, 59.9)
        assert request_own(party, tmp_path / "none", 30) == []
        in_days(monkeypatch, 60.1)
        assert [item.profile for item in request_own(party, tmp_path / "requests", 0)] == ["tls"]
        before = certify.own_chain(party, "tls")[0]
        both = [item.profile for item in request_own(party, tmp_path / "more", 2 * 365)]
        assert both == ["package-signing", "tls", "package-signing-p384"]
    with realm.open("authority") as party:
        issue(party, tmp_path / "requests", tmp_path / "issued")
    with realm.open("utility") as party:
        assert [item.profile for item in certify.install(party, tmp_path / "issued")] == ["tls"]
        after = certify.own_chain(party, "tls")[0]
    assert after.serial_number != before.serial_number
    assert public_key(after) == public_key(before)
    wanted = x509.SubjectAlternativeName
    assert after.extensions.get_extension_for_class(wanted) == before.extensions.get_extension_for_class(wanted)


def test_a_peer_takes_the_renewed_certificates_when_they_are_registered(realm: Realm, tmp_path: Path) -> None:
    with realm.open("utility") as party:
        assert len(request_own(party, tmp_path / "requests", 3660)) == 7
    with realm.open("authority") as party:
        issue(party, tmp_path / "requests", tmp_path / "issued")
    with realm.open("factory") as party:
        plan = PartyPlan("utility", "utility", (), "", "", tmp_path / "issued", replace=True)
        pinned = register_party(party, plan).certificates
    assert pinned["tls"] == fingerprint(read_certificates(tmp_path / "issued" / "tls.pem")[0])


def test_a_token_that_is_gone_ends_the_work_on_a_fleet(
    realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def unreachable(_party: Party, name: str, _folder: Path) -> list[Enrolled]:
        asked.append(name)
        raise TokenUnreachableError("removed")

    monkeypatch.setattr(renew_certificates, "import_certificates", unreachable)
    for serial in (1, 2):
        (tmp_path / f"{title_of(serial)}.tls.pem").touch()
    with realm.open("factory") as party, pytest.raises(TokenUnreachableError):
        import_meters(party, tmp_path)
    assert asked == [title_of(1)]


@pytest.mark.slow
def test_a_fleets_certificates_that_are_due_are_renewed_and_a_meter_out_of_reach_is_told_of(
    realm: Realm, tmp_path: Path
) -> None:
    with injected(realm, 1):
        enrol(realm)
        with realm.open("factory") as party:
            assert request_meters(party, tmp_path / "none", 30) == []
            assert [item.profile for item in request_meters(party, tmp_path / "requests", 100)] == ["tls"]
        with realm.open("authority") as party:
            issue(party, tmp_path / "requests", tmp_path / "issued")
        with realm.open("factory") as party:
            assert [item.state for item in import_meters(party, tmp_path / "issued")] == ["imported"]
            made = read_certificates(tmp_path / "issued" / f"{TITLE}.tls.pem")[0]
            assert meter_certificate(party, TITLE, "tls", 1) == made
    with realm.open("factory") as party:
        (gone,) = request_meters(party, tmp_path / "again", 100)
        assert (gone.meter, gone.profile, gone.state.partition(":")[0]) == (TITLE, "tls", "failed")
        (gone,) = import_meters(party, tmp_path / "issued")
        assert gone.state.startswith("failed: ")
