"""Listings of any length: in pages, each at a moment of its own, and never held."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import islice

import pytest

from hsmkm.store import audit, certificates, holders, meters
from hsmkm.store.certificates import CertificateRecord, Source
from hsmkm.store.holders import Holder
from hsmkm.store.key_set import KeySetRef
from hsmkm.store.store import Store
from tests.database import alter
from tests.memory import peak_of, read_through
from tests.store.conftest import NOW, Factory

RECORDS = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {last})
INSERT INTO audit (sequence, epoch, time, actor, action, subject, detail, effect, previous, hash)
SELECT i, 1, '2026-03-01T12:00:00Z', 'tester', 'look', 'x', '{{}}', effect, previous, hash FROM n, audit
WHERE sequence = {first} AND i > {first}
"""


@pytest.fixture
def listing(url: str) -> Iterator[Store]:
    with Store.open(url, None, "") as opened:
        yield opened


def add(store: Store, factory: Factory, numbers: range) -> None:
    with store.begin("test", "meters", {}) as tx:
        meters.add_many(tx, map(factory.meter, numbers))


def test_every_meter_is_read_once_and_by_title(store: Store, factory: Factory) -> None:
    add(store, factory, range(2_500))
    assert [int(meter.serial) for meter in meters.every(store)] == list(range(2_500))
    last = factory.meter(2_490).system_title
    assert [int(meter.serial) for meter in meters.every(store, after=last)] == list(range(2_491, 2_500))


def test_who_reads_a_listing_slowly_keeps_no_transaction_open(store: Store, factory: Factory) -> None:
    add(store, factory, range(2_500))
    reading = meters.every(store)
    first = [next(reading)]
    add(store, factory, range(5_000, 5_002))
    assert [int(meter.serial) for meter in [*first, *reading]] == [*range(2_500), 5_000, 5_001]


def test_records_behind_a_sequence_are_read_in_pages(store: Store, listing: Store) -> None:
    for number in range(5):
        with store.begin("look", "even" if number % 2 == 0 else "odd", {"number": number}):
            pass
    assert [item.detail["number"] for item in audit.every(listing, subject="even")] == [0, 2, 4]
    assert [item.detail["number"] for item in islice(audit.every(listing, after=2), 2)] == [2, 3]


def test_the_newest_records_of_some_actions_are_found_for_many_subjects(store: Store, listing: Store) -> None:
    for action, subject in (("look", "x"), ("look", "y"), ("see", "x"), ("hear", "x"), ("hear", "z")):
        with store.begin(action, subject, {}):
            pass
    with listing.read() as tx:
        found = audit.newest_of(tx, ["look", "see"], ["x", "y", "z"])
    assert {name: record.action for name, record in found.items()} == {"x": "see", "y": "look"}


def test_the_holders_of_a_key_of_many_meters_are_read_meter_by_meter(store: Store) -> None:
    shared = bytes(16)
    refs = [KeySetRef(b"UTI" + number.to_bytes(5, "big"), 0, 1, 1) for number in range(5)]
    with store.begin("package-send", "dc-1", {}) as tx:
        holders.add_many(tx, [Holder(shared, ref, party, party) for ref in refs for party in ("dc-1", "line")])
    with store.read() as tx:
        first = holders.for_key(tx, shared, meters=2)
        second = holders.for_key(tx, shared, after=refs[1].system_title, meters=2)
        assert holders.for_key(tx, shared, after=refs[4].system_title, meters=2) == []
        assert [item.ref for item in first] == [refs[0], refs[0], refs[1], refs[1]]
        assert [item.ref for item in second] == [refs[2], refs[2], refs[3], refs[3]]
        assert len(holders.for_key(tx, shared)) == 10


def test_certificates_are_read_by_the_end_of_their_validity_many_of_which_are_the_same(store: Store) -> None:
    with store.begin("pki-issue", "x", {}) as tx:
        for number in range(350):
            certificates.add(tx, certificate(number))
    with store.read() as tx:
        listed = certificates.listing(tx)
        assert list(certificates.every(store)) == listed
        assert list(certificates.by_end(tx)) == listed[::-1]
    assert len({item.fingerprint for item in listed}) == 350


def certificate(number: int) -> CertificateRecord:
    octets = number.to_bytes(32, "big")
    end = NOW + timedelta(days=90 if number < 10 else number % 2)
    return CertificateRecord(octets, b"der", "tls", "CN=x", "CN=y", octets, NOW, end, "x", Source.ISSUED)


def test_a_listing_takes_no_more_memory_of_ten_times_the_rows(
    store: Store, listing: Store, factory: Factory, url: str
) -> None:
    add(store, factory, range(2_000))
    with store.read() as tx:
        first = audit.newest_sequence(tx)
    alter(url, RECORDS.format(first=first, last=2_000))
    read_through(meters.every(listing))
    few = [peak_of(lambda: read_through(every(listing))) for every in (meters.every, audit.every)]  # noqa: B023 - called at once
    with store.count() as tx:
        meters.add_many(tx, map(factory.meter, range(2_000, 20_000)))
    alter(url, RECORDS.format(first=2_000, last=20_000))
    many = [peak_of(lambda: read_through(every(listing))) for every in (meters.every, audit.every)]  # noqa: B023 - called at once
    assert [(most - least) / 18_000 < 2 for least, most in zip(few, many, strict=True)] == [True, True], (few, many)
