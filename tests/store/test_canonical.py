from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.store.canonical import Value, canonical_json, encode
from hsmkm.store.times import from_seconds, to_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

VALUES = st.lists(st.one_of(st.binary(), st.text(), st.integers(-(2**70), 2**70), st.none()), max_size=5)


def decode(data: bytes) -> list[Value]:
    """Read an encoding back, to show that nothing of it is lost."""
    found: list[Value] = []
    while data:
        tag, size = data[:1], int.from_bytes(data[1:5], "big")
        content, data = data[5 : 5 + size], data[5 + size :]
        readers: dict[bytes, Callable[[bytes], Value]] = {b"b": bytes, b"s": bytes.decode, b"n": lambda _: None}
        found.append(int.from_bytes(content, "big", signed=True) if tag == b"i" else readers[tag](content))
    return found


@given(VALUES)
def test_no_two_lists_of_values_encode_alike(values: list[Value]) -> None:
    assert decode(encode("label", *values)) == ["label", *values]


@pytest.mark.parametrize(
    ("value", "octets"),
    [(0, "00"), (127, "7f"), (128, "0080"), (255, "00ff"), (256, "0100"), (-1, "ff"), (2**32 - 1, "00ffffffff")],
)
def test_integers_are_written_in_twos_complement(value: int, octets: str) -> None:
    size = len(octets) // 2
    assert encode("", value).hex() == "7300000000" + "69" + f"{size:08x}" + octets


def test_json_is_written_in_one_way_only() -> None:
    assert canonical_json({"b": 1, "a": ["ä", None]}) == '{"a":["ä",null],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("nan")})


def test_moments_are_whole_seconds_with_a_time_zone() -> None:
    moment = datetime(2026, 3, 1, 12, 30, 15, 999999, tzinfo=UTC)
    assert from_seconds(to_seconds(moment)) == moment.replace(microsecond=0)
    assert to_seconds(None) is None
    with pytest.raises(ValueError, match="time zone"):
        to_seconds(moment.replace(tzinfo=None))
