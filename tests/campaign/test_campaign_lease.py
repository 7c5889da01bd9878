"""A meter whose lease could not be given back while the store was away is spoken with again as soon as it is there."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from hsmkm.steps.communicate import conversation, find_meter
from hsmkm.store import engine
from hsmkm.store.failures import StoreUnavailableError
from hsmkm.store.leases import HeldError
from tests.campaign.test_campaign_trouble import locked
from tests.street import ONE, Street


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that waits for no other writer."""
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0)


def test_it_is_free_at_once_and_held_by_one_again(impatient: None, street: Street) -> None:  # noqa: ARG001 - it makes the store impatient
    meter = find_meter(street.party, ONE)
    with pytest.raises(StoreUnavailableError):
        leave_locked(street)
    with conversation(street.party, meter) as first, pytest.raises(HeldError), conversation(street.party, meter):
        pass
    with conversation(street.party, meter) as second:
        assert second.lease.fence == first.lease.fence + 1


def leave_locked(street: Street) -> None:
    """Leave a conversation while another process writes, and let that end then."""
    with ExitStack() as other, conversation(street.party, find_meter(street.party, ONE)):
        other.enter_context(locked(street))
