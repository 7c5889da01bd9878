"""A MAC that fitted once is not asked for again; whatever is altered is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import IntegrityError
from hsmkm.store import known_macs, parties
from hsmkm.store.known_macs import KnownMacs
from hsmkm.token.types import Mac
from tests.database import alter

if TYPE_CHECKING:
    from hsmkm.store.store import Store

MAC = Mac(1, bytes(32))


def test_another_content_another_mac_or_another_key_is_not_known() -> None:
    known = KnownMacs()
    known.add(b"content", MAC)
    assert known.holds(b"content", MAC)
    others = [(b"Content", MAC), (b"content", Mac(2, MAC.value)), (b"content", Mac(1, b"\1" + bytes(31)))]
    others += [(b"ontent", Mac(1, MAC.value + b"c")), (b"\0content", Mac(1, bytes(31)))]
    assert not any(known.holds(*other) for other in others)


def test_it_forgets_before_it_grows_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_macs, "MOST", 2)
    known = KnownMacs()
    for number in range(3):
        known.add(bytes([number]), MAC)
    assert [known.holds(bytes([number]), MAC) for number in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE parties SET role = 'factory'",
        "UPDATE parties SET revision = 2",
        "UPDATE parties SET mac_key = 2",
    ],
)
def test_a_row_that_was_verified_before_is_refused_once_it_is_altered(store: Store, url: str, change: str) -> None:
    with store.begin("party add", "one", {}) as tx:
        parties.add(tx, parties.Party("one", "utility"))
    with store.read() as tx:
        assert parties.require(tx, "one").role == "utility"
    alter(url, change)
    with store.read() as tx, pytest.raises(IntegrityError):
        parties.require(tx, "one")
