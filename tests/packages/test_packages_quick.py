"""What is read quickly is what the strict reader reads, and whatever is unusual is left to it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from secrets import token_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.errors import InputError
from hsmkm.packages import content as module
from hsmkm.packages.content import (
    MeterEntry,
    PackageContent,
    PackageHeader,
    Peer,
    Purpose,
    Under,
    WrappedKey,
    parse_content,
)
from hsmkm.packages.quick import MOST_FORMS
from hsmkm.token.types import KeyRole, SecretRole

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
HEADER = PackageHeader(
    "0f8fad5b-d9cb-469f-a165-70867728950e", 7, NOW, NOW + timedelta(days=30), Purpose.DELIVERY,
    Peer("factory", "factory"), Peer("utility", "utility", bytes.fromhex("5554490000000001")),
)  # fmt: skip


def entry(number: int, suite: int = 0, **changes: object) -> MeterEntry:
    length = 40 if suite == 2 else 24
    keys = tuple(WrappedKey(role, token_bytes(16), token_bytes(length), Under.PACKAGE) for role in KeyRole)
    made = MeterEntry(b"MMM" + number.to_bytes(5, "big"), f"S{number}", "mm100", suite, 0, 1, 1, "active", keys=keys)
    return replace(made, **changes)  # type: ignore[arg-type]  # the fields of an entry


def content(*meters: MeterEntry) -> PackageContent:
    return PackageContent(HEADER, b"\x30\x00", meters)


def quickly(data: bytes) -> PackageContent | None:
    return module._parse_quickly(data)


def strictly(data: bytes) -> PackageContent | None:
    """Read with the strict reader alone; nothing for what it refuses."""
    with suppress(InputError):
        return module._parse_strictly(data)
    return None


SECRETS = tuple(WrappedKey(role, token_bytes(16), token_bytes(24), Under.PACKAGE) for role in SecretRole)
CONTENTS = [
    content(entry(1), entry(2), entry(3)),
    content(entry(1, 2), entry(2, 1), entry(3), entry(4, 2)),
    content(entry(1, address="192.0.2.1:4059"), entry(2, address="[2001:db8::1]:4059"), entry(3)),
    content(entry(1, group="Zähler"), entry(2, group="Zähler"), entry(3, serial="a b/1 [x]")),
    content(replace(entry(1), keys=(*entry(1).keys, *SECRETS)), entry(2), entry(1, client=16)),
    content(entry(1, 1, certificates=(b"\x30\x01\x00",)), entry(2, 1)),
]


@pytest.mark.parametrize("made", CONTENTS)
def test_canonical_contents_are_read_quickly_and_as_the_strict_reader_reads_them(made: PackageContent) -> None:
    data = made.encode()
    assert quickly(data) == strictly(data) == made


@pytest.mark.parametrize(
    "made",
    [
        content(entry(1, serial='a"b')),
        content(entry(1, serial="Zähler")),
        content(*(entry(number, model=f"model {number}") for number in range(MOST_FORMS + 1))),
    ],
)
def test_what_is_unusual_is_left_to_the_strict_reader(made: PackageContent) -> None:
    data = made.encode()
    assert quickly(data) is None
    assert parse_content(data) == made


@pytest.mark.parametrize("white", [b" ", b"\n"])
def test_entries_that_are_not_canonical_are_left_to_the_strict_reader(white: bytes) -> None:
    data = CONTENTS[0].encode().replace(b'"suite":', b'"suite":' + white)
    assert quickly(data) is None
    assert parse_content(data) == CONTENTS[0]


def test_a_key_that_is_given_twice_is_left_to_the_strict_reader() -> None:
    first, second = entry(1, group="north"), entry(2, group="north")
    gbek = next(key for key in first.keys if key.role is KeyRole.GBEK)
    shared = replace(second, keys=(*(key for key in second.keys if key.role is not KeyRole.GBEK), gbek))
    data = content(first, shared).encode()
    assert quickly(data) is None
    assert len(parse_content(data).meters) == 2


@given(st.sampled_from(CONTENTS), st.data())
def test_no_altered_content_is_read_otherwise_than_strictly(made: PackageContent, data: st.DataObject) -> None:
    octets = bytearray(made.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(octets) - 1))
        piece = data.draw(
            st.sampled_from([b"", b"0", b"a", b"A", b'"', b",", b"{", b"}", b"[", b"]", b" ", b"\\", b"-", b"\xc3"])
        )
        octets[at : at + data.draw(st.integers(0, 2))] = piece
    found = quickly(bytes(octets))
    assert found is None or found == strictly(bytes(octets))


MEMBERS = st.sampled_from(["meters", "sender", "recipient", "transport", "id", "keys", "extra"])
INNER = st.sampled_from([[], {}, "x", 1, {"meters": []}, [{"meters": []}]])


@given(MEMBERS, INNER, st.booleans())
def test_a_member_of_another_form_around_the_entries_is_left_to_the_strict_reader(
    name: str,
    value: object,
    before: bool,  # noqa: FBT001 - drawn
) -> None:
    document = json.loads(CONTENTS[0].encode())
    changed = {name: value} | document | {name: value} if before else document | {name: value}
    data = json.dumps(changed, separators=(",", ":")).encode()
    found = quickly(data)
    assert found is None or found == strictly(data)
