from __future__ import annotations

import pytest

from hsmkm.errors import PolicyError, RefusedError
from hsmkm.store import counters, retirement
from hsmkm.store.store import Store

CERTIFICATE = bytes(range(32))


def test_a_retired_store_is_read_and_never_changed(store: Store) -> None:
    with store.begin("retire", "me", {}) as tx:
        retirement.retire(tx, CERTIFICATE)
    with store.read() as tx:
        assert retirement.recipient(tx) == CERTIFICATE
    with pytest.raises(PolicyError, match="retired"), store.begin("anything", "x", {}):
        pass
    with pytest.raises(PolicyError, match="retired"), store.count() as tx:
        counters.reserve(tx, bytes(16), bytes(8), 1, None)


def test_only_what_says_so_is_recorded_in_it_and_it_is_retired_once(store: Store) -> None:
    with store.read() as tx:
        assert retirement.recipient(tx) is None
    with store.begin("retire", "me", {}) as tx:
        retirement.retire(tx, CERTIFICATE)
    with (
        store.begin("again", "me", {}, although_retired=True) as tx,
        pytest.raises(RefusedError, match="there already"),
    ):
        retirement.retire(tx, bytes(32))
