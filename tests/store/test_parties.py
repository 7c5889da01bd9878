from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import RefusedError
from hsmkm.store import certificates, holders, packages, parties
from hsmkm.store.certificates import CertificateRecord, CertificateState, Issuance, Source
from hsmkm.store.key_set import KeySetRef
from hsmkm.store.packages import Direction, PackageRecord
from hsmkm.store.parties import Party

if TYPE_CHECKING:
    from hsmkm.store.store import Store

NOW = datetime(2026, 3, 1, tzinfo=UTC)
UTILITY = Party("utility-a", "utility", b"UTL\x00\x00\x00\x00\x01", ("UTI", "ABC"), "", None, {"tls": bytes(32)})
LEAF = CertificateRecord(
    b"\x01" * 32, b"der", "tls", "CN=x", "CN=issuing", b"\x07", NOW, NOW + timedelta(days=90), "utility-a", Source.PARTY
)
PACKAGE = PackageRecord(
    "id-1", Direction.RECEIVED, "delivery", 3, "factory-a", NOW, NOW + timedelta(days=7), bytes(32), "opened", 20
)


def test_a_party_is_found_by_name_and_pinned_certificate(store: Store) -> None:
    with store.begin("party add", "utility-a", {}) as tx:
        parties.add(tx, UTILITY)
        parties.add(tx, Party("dc-1", "concentrator", kind="relay"))
        assert parties.get(tx, "utility-a") == UTILITY
        assert parties.by_certificate(tx, "tls", bytes(32)) == UTILITY
        assert parties.by_certificate(tx, "package-signing", bytes(32)) is None
        assert [party.name for party in parties.listing(tx, role="concentrator")] == ["dc-1"]
        moved = replace(UTILITY, address="10.0.0.9:8443")
        parties.update(tx, moved)
        assert parties.require(tx, "utility-a") == moved


def test_a_party_is_refused_if_it_is_there_or_not_well_formed(store: Store) -> None:
    with store.begin("party add", "utility-a", {}) as tx:
        parties.add(tx, UTILITY)
        with pytest.raises(RefusedError, match="already"):
            parties.add(tx, UTILITY)
        for wrong in ({"system_title": b"x"}, {"certificates": {"tls": b"x"}}, {"flags": ("A,B",)}, {"name": ""}):
            with pytest.raises(RefusedError):
                parties.add(tx, replace(UTILITY, **wrong))
        with pytest.raises(RefusedError, match="no party"):
            parties.require(tx, "nobody")


def test_two_parties_never_share_a_system_title(store: Store) -> None:
    with store.begin("party add", "utility-a", {}) as tx:
        parties.add(tx, UTILITY)
    with pytest.raises(RefusedError), store.begin("party add", "utility-b", {}) as tx:
        parties.add(tx, replace(UTILITY, name="utility-b"))


def test_a_certificate_is_recorded_before_it_is_signed(store: Store) -> None:
    planned = Issuance("CN=issuing", b"\x07", "tls", "CN=x", bytes(32), NOW, NOW + timedelta(days=90))
    with store.begin("pki issue", "CN=x", {}) as tx:
        with pytest.raises(RefusedError, match="never recorded"):
            certificates.complete_issued(tx, LEAF)
        certificates.record_issued(tx, planned)
        with pytest.raises(RefusedError, match="already"):
            certificates.record_issued(tx, replace(planned, subject="CN=y"))
        certificates.record_issued(tx, replace(planned, issuer="CN=other"))
        certificates.complete_issued(tx, LEAF)
        with pytest.raises(RefusedError, match="issued before"):
            certificates.complete_issued(tx, replace(LEAF, fingerprint=b"\x02" * 32))
        found = certificates.issuance(tx, "CN=issuing", b"\x07")
    assert found == replace(planned, state=CertificateState.VALID, fingerprint=LEAF.fingerprint)


def test_what_is_revoked_stays_revoked_and_is_listed_for_the_crl(store: Store) -> None:
    planned = Issuance("CN=issuing", b"\x07", "tls", "CN=x", bytes(32), NOW, NOW + timedelta(days=90))
    with store.begin("pki revoke", "CN=x", {}) as tx:
        certificates.record_issued(tx, planned)
        certificates.complete_issued(tx, LEAF)
        certificates.revoke(tx, "CN=issuing", b"\x07", NOW, "key_compromise")
        with pytest.raises(RefusedError, match="already"):
            certificates.revoke(tx, "CN=issuing", b"\x07", NOW, "superseded")
        [entry] = certificates.revoked(tx, "CN=issuing")
        stored = certificates.get(tx, LEAF.fingerprint)
    assert (entry.serial, entry.revoked, entry.reason) == (b"\x07", NOW, "key_compromise")
    assert stored == replace(LEAF, state=CertificateState.REVOKED)


def test_crl_numbers_rise(store: Store) -> None:
    dates = NOW, NOW + timedelta(days=7)
    with store.begin("pki crl", "CN=issuing", {}) as tx:
        assert certificates.next_crl_number(tx, "CN=issuing") == 1
        certificates.record_crl(tx, "CN=issuing", 5, dates, bytes(32))
        assert certificates.next_crl_number(tx, "CN=issuing") == 6
        with pytest.raises(RefusedError, match="does not rise"):
            certificates.record_crl(tx, "CN=issuing", 5, dates, bytes(32))


def test_certificates_are_listed_by_owner_profile_and_expiry(store: Store) -> None:
    later = replace(LEAF, fingerprint=b"\x02" * 32, not_after=NOW + timedelta(days=900), source=Source.OWN)
    with store.begin("pki add", "x", {}) as tx:
        certificates.add(tx, LEAF)
        certificates.add(tx, later)
        assert certificates.listing(tx, owner="utility-a", profile="tls") == [later, LEAF]
        assert certificates.listing(tx, source=Source.OWN) == [later]
        assert certificates.listing(tx, expires_before=NOW + timedelta(days=100)) == [LEAF]
        with pytest.raises(RefusedError, match="no certificate"):
            certificates.set_state(tx, bytes(32), CertificateState.REPLACED)


def test_package_sequences_rise_for_each_peer_and_purpose(store: Store) -> None:
    with store.begin("package import", "id-1", {}) as tx:
        packages.add(tx, PACKAGE)
        assert packages.last_sequence(tx, "factory-a", "delivery") == 3
        assert packages.last_sequence(tx, "factory-a", "transfer") == 0
        assert packages.next_sequence(tx, "factory-a", "delivery") == 1
        with pytest.raises(RefusedError, match="does not rise"):
            packages.add(tx, replace(PACKAGE, id="id-2"))
        packages.add(tx, replace(PACKAGE, id="id-2", direction=Direction.SENT))
        assert packages.next_sequence(tx, "factory-a", "delivery") == 4
        with pytest.raises(RefusedError, match="already"):
            packages.add(tx, replace(PACKAGE, sequence=9))


def test_a_package_has_one_receipt(store: Store) -> None:
    with store.begin("package receipt", "id-1", {}) as tx:
        packages.add(tx, PACKAGE)
        packages.set_receipt(tx, "id-1", b"receipt", "receipted")
        packages.set_receipt(tx, "id-1", b"receipt", "receipted")
        with pytest.raises(RefusedError, match="another receipt"):
            packages.set_receipt(tx, "id-1", b"other", "receipted")
        packages.set_state(tx, "id-1", "closed")
        assert packages.get(tx, "id-1") == replace(PACKAGE, receipt=b"receipt", state="closed")
        assert packages.listing(tx, peer="factory-a", state="opened") == []
        assert len(packages.listing(tx, direction=Direction.RECEIVED)) == 1
        with pytest.raises(RefusedError, match="no package"):
            packages.set_state(tx, "id-9", "closed")


def test_who_holds_a_key_is_known_by_key_by_meter_and_by_package(store: Store) -> None:
    ref = KeySetRef(b"UTI\x00\x00\x00\x00\x01", 0, 1, 1)
    with store.begin("package export", "id-1", {}) as tx:
        second = [holders.Holder(identity, ref, "dc-1", "id-2") for identity in (bytes(16), b"\x01" * 16)]
        holders.add_many(tx, [holders.Holder(bytes(16), ref, "utility-a", "id-1")])
        holders.add_many(tx, second)
        assert [holder.party for holder in holders.for_key(tx, bytes(16))] == ["dc-1", "utility-a"]
        assert [holder.identity[0] for holder in holders.for_meter(tx, ref.system_title)] == [0, 1, 0]
        assert [holder.identity[0] for holder in holders.of_package(tx, "id-2")] == [0, 1]
        assert holders.of_package(tx, "id-3") == []
        with pytest.raises(RefusedError, match="id-2 is there already"):
            holders.add_many(tx, second)
