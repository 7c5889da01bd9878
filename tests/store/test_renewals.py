from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import RefusedError
from hsmkm.store import intents, renewals
from hsmkm.store.key_set import KeySetRef
from hsmkm.store.renewals import RenewalState
from hsmkm.token.types import KeyRole

if TYPE_CHECKING:
    from hsmkm.store.store import Store

METER = b"UTI\x00\x00\x00\x00\x01"
OLD = KeySetRef(METER, 0, 1, 1)
ROLES = (KeyRole.GUEK, KeyRole.GAK)


def test_a_renewal_goes_its_way(store: Store) -> None:
    with store.begin("renew", "x", {}) as tx:
        renewal = renewals.create(tx, OLD, 2, ROLES, "guek,gak")
        for state in (RenewalState.SENT, RenewalState.ACKNOWLEDGED, RenewalState.VERIFIED, RenewalState.ACTIVE):
            renewals.advance(tx, renewal, state, "guek,gak")
        found = renewals.get(tx, renewal)
        assert (found.state, found.roles, found.old, found.new) == ("active", ROLES, OLD, KeySetRef(METER, 0, 1, 2))
        assert renewals.unfinished(tx, METER) == []
        assert renewals.listing(tx, METER) == [found]


def test_no_state_is_skipped_and_none_is_left_when_finished(store: Store) -> None:
    with store.begin("renew", "x", {}) as tx:
        renewal = renewals.create(tx, OLD, 2, ROLES, "guek,gak")
        with pytest.raises(RefusedError, match="prepared and cannot become verified"):
            renewals.advance(tx, renewal, RenewalState.VERIFIED, "guek,gak")
        renewals.advance(tx, renewal, RenewalState.SENT, "guek,gak")
        renewals.advance(tx, renewal, RenewalState.SENT, "master")
        with pytest.raises(RefusedError, match="sent and cannot become abandoned"):
            renewals.advance(tx, renewal, RenewalState.ABANDONED, "master")
        renewals.advance(tx, renewal, RenewalState.UNKNOWN, "master")
        renewals.advance(tx, renewal, RenewalState.ABANDONED, "master")
        with pytest.raises(RefusedError, match="abandoned and cannot become abandoned"):
            renewals.advance(tx, renewal, RenewalState.ABANDONED, "master")
        with pytest.raises(RefusedError, match="no renewal"):
            renewals.get(tx, 99)


def test_one_renewal_of_the_same_keys_at_a_time(store: Store) -> None:
    with store.begin("renew", "x", {}) as tx:
        renewals.create(tx, OLD, 2, ROLES, "guek,gak")
        with pytest.raises(RefusedError, match="is prepared"):
            renewals.create(tx, OLD, 3, ROLES, "guek,gak")
        renewals.create(tx, KeySetRef(METER, 0, 2, 1), 2, ROLES, "guek,gak")
        assert len(renewals.unfinished(tx)) == 2


def test_attempts_are_counted_with_what_was_tried(store: Store) -> None:
    with store.begin("resolve", "x", {}) as tx:
        renewal = renewals.create(tx, OLD, 2, ROLES, "guek,gak")
        assert renewals.attempt(tx, renewal, {"guek": 1, "gak": 1}) == 1
        assert renewals.attempt(tx, renewal, {"guek": 2, "gak": 2}) == 2
        assert renewals.get(tx, renewal).tried == ({"guek": 1, "gak": 1}, {"guek": 2, "gak": 2})


def test_an_intent_is_open_until_its_outcome_is_known(store: Store) -> None:
    with store.begin("inject", "x", {}) as tx:
        intent = intents.open(tx, METER, "key_transfer", {"roles": ["guek"]})
        assert [found.id for found in intents.unfinished(tx, METER)] == [intent]
    with store.begin("inject", "x", {}) as tx:
        intents.outcome(tx, intent, "success")
        assert intents.unfinished(tx) == []
        found = intents.get(tx, intent)
        with pytest.raises(RefusedError, match="not open"):
            intents.outcome(tx, intent, "failure")
    assert found is not None
    assert (found.outcome, found.detail) == ("success", {"roles": ["guek"]})
