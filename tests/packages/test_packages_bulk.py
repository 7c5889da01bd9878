"""Entries that are written in bulk are what one at a time would be, and nothing is signed that would be refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hsmkm.errors import InputError
from hsmkm.packages.bulk import EntryWriter, is_usual, join
from hsmkm.packages.content import MeterEntry, PackageContent, PackageHeader, Peer, Purpose
from hsmkm.token.types import KeyRole, MeterRole, SecretRole

KEYS: tuple[tuple[MeterRole, int], ...] = (
    (KeyRole.MASTER, 16),
    (KeyRole.GUEK, 16),
    (KeyRole.GBEK, 16),
    (KeyRole.GAK, 16),
    (SecretRole.HLS, 24),
)
LIKE = MeterEntry(b"", "", "model %s", 0, 2, 16, 1, "pre-active")
NOW = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
HEADER = PackageHeader(
    "0b0b0b0b-0b0b-4b0b-8b0b-0b0b0b0b0b0b",
    7,
    NOW,
    NOW + timedelta(days=30),
    Purpose.INJECTION,
    Peer("factory", "factory", b"FAC\x00\x00\x00\x00\x01"),
    Peer("line", "line"),
)


def keys_of(number: int) -> tuple[bytes, bytes]:
    """Identities and wrapped keys that no other meter has."""
    identities = b"".join(bytes([number, place]) * 8 for place in range(len(KEYS)))
    wrapped = b"".join(bytes([number, 100 + place]) * ((octets + 8) // 2) for place, (_, octets) in enumerate(KEYS))
    return identities, wrapped


@pytest.mark.parametrize("purpose", [Purpose.INJECTION, Purpose.DELIVERY])
@pytest.mark.parametrize("serial", ["12", 'Zähler "7"\\', "%s {0}", "日本"])
def test_content_in_bulk_is_the_content_one_at_a_time(purpose: Purpose, serial: str) -> None:
    header = PackageHeader(**{name: getattr(HEADER, name) for name in HEADER.__slots__} | {"purpose": purpose})
    writer = EntryWriter(purpose, LIKE, KEYS)
    given = [(b"MMM\x00\x00\x00\x00" + bytes([number]), f"{serial}{number}", *keys_of(number)) for number in (1, 2, 3)]
    texts = [writer.write(*one) for one in given]
    alone = PackageContent(header, b"info", tuple(writer.entry(*one) for one in given))
    assert join(header, b"info", texts, texts[:1]) == alone.encode()


def test_what_a_recipient_would_refuse_is_found_in_the_probes() -> None:
    writer = EntryWriter(Purpose.INJECTION, LIKE, KEYS)
    fine = writer.write(b"MMM\x00\x00\x00\x00\x01", "1", *keys_of(1))
    wrong = writer.write(b"MMM\x00\x00\x00\x00\x02", "", *keys_of(2))
    assert not is_usual("")
    with pytest.raises(InputError):
        join(HEADER, b"info", [fine, wrong], [fine, wrong])


def test_only_letters_and_digits_need_no_reading_back() -> None:
    assert [serial for serial in ("123", "AB12", "a b", '"', "", "7" * 33) if is_usual(serial)] == ["123", "AB12"]
