"""The expiry watch names what has ended, what soon will, and what is due, and nothing that was renewed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.steps.expiry import due_certificates, due_lists, renewal_date
from hsmkm.steps.issue import issue
from hsmkm.steps.party import utc_now
from hsmkm.store import certificates
from tests.realm import title_of
from tests.steps.test_steps_issue import write_request

if TYPE_CHECKING:
    from hsmkm.steps.party import Party
    from tests.realm import Realm

TITLE = title_of(1)


def states(party: Party, after: timedelta, days: int) -> dict[str, str]:
    """What is due so long after the title's last certificate began, whatever the time is now."""
    with party.store.read() as tx:
        begin = max(record.not_before for record in certificates.listing(tx, owner=TITLE))
        found = list(due_certificates(tx, begin + after, days))
    return {item.profile: item.state for item in found if item.owner == TITLE}


def test_a_certificate_is_due_at_two_thirds_of_its_life(realm: Realm, tmp_path: Path) -> None:
    for profile in ("tls", "digital-signature"):
        write_request(tmp_path / "requests", profile, TITLE)
    with realm.open("authority") as party:
        issue(party, tmp_path / "requests", tmp_path / "out")
        assert states(party, timedelta(days=59.9), 30) == {}
        assert states(party, timedelta(days=60.1), 0) == {"tls": "renewal due"}
        assert states(party, timedelta(days=60.1), 30) == {"tls": "expiring"}
        assert states(party, timedelta(days=91), 30) == {"tls": "expired"}
        life = timedelta(days=5 * 365)
        assert states(party, life, 30) == {"tls": "expired", "digital-signature": "expiring"}
        assert states(party, life + timedelta(seconds=1), 30) == {"tls": "expired", "digital-signature": "expired"}


def test_a_device_without_an_end_is_never_due(realm: Realm, tmp_path: Path) -> None:
    write_request(tmp_path / "requests", "digital-signature", TITLE)
    with realm.open("authority") as party:
        issue(party, tmp_path / "requests", tmp_path / "out", without_end=True)
        assert states(party, timedelta(days=100 * 365), 3660) == {}


def test_what_was_renewed_is_not_named_and_what_is_on_another_curve_is(realm: Realm, tmp_path: Path) -> None:
    with realm.open("authority") as party:
        write_request(tmp_path / "first", "tls", TITLE)
        issue(party, tmp_path / "first", tmp_path / "out")
        with party.store.read() as tx:
            (first,) = [
                item for item in due_certificates(tx, utc_now() + timedelta(days=80), 30) if item.owner == TITLE
            ]
        later = ec.generate_private_key(ec.SECP384R1())
        write_request(tmp_path / "other", "tls", TITLE, later)
        issue(party, tmp_path / "other", tmp_path / "out-other")
        with party.store.read() as tx:
            found = [item for item in due_certificates(tx, utc_now() + timedelta(days=80), 30) if item.owner == TITLE]
    assert len(found) == 2
    assert first in found


def test_revocation_lists_are_watched_too(realm: Realm) -> None:
    home, now = realm.home("utility"), utc_now()
    assert list(due_lists(home, now, 0)) == []
    assert {item.state for item in due_lists(home, now, 30)} == {"expiring"}
    assert len(list(due_lists(home, now + timedelta(days=8), 0))) == 3
    assert renewal_date(now, now + timedelta(days=90)) == now + timedelta(days=60)
