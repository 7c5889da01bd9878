"""What an association does about the meter's counter, which other clients under the same GUEK raise too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hsmkm.link.client import MeterRefusedError
from hsmkm.steps import communicate
from hsmkm.steps.communicate import Conversation, is_gone, read, this_process
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party
from tests.field import ENERGY
from tests.mechanisms import TITLE, Line, set_up
from tests.realm import Realm

HLS_GMAC = 5


@contextmanager
def injected(realm: Realm) -> Iterator[tuple[Line, Party]]:
    line = set_up(realm, HLS_GMAC, 0)
    with line.meter() as address, realm.open("factory") as party:
        assert inject(party, TITLE, address).state == "active"
        line.state.rx_ic += 100
        yield line, party


def overtaken(line: Line, monkeypatch: pytest.MonkeyPatch, times: int) -> list[int | None]:
    """Have another client speak so many times right after the meter was asked for its counter; what it told."""
    asked, told = communicate.read_public_counter, list[int | None]()

    def ask(speaking: Conversation) -> int | None:
        told.append(asked(speaking))
        if len(told) <= times:
            line.state.rx_ic += 500
        return told[-1]

    monkeypatch.setattr(communicate, "read_public_counter", ask)
    return told


def test_a_client_that_speaks_between_question_and_association_is_followed(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    with injected(realm) as (line, party):
        told = overtaken(line, monkeypatch, times=1)
        (reading,) = read(party, TITLE, (ENERGY,))
    assert reading.data.value == 123_456
    assert len(told) == 2


def test_a_meter_that_is_always_ahead_is_asked_no_further(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    with injected(realm) as (line, party):
        told = overtaken(line, monkeypatch, times=10)
        with pytest.raises(MeterRefusedError, match="association rejected"):
            read(party, TITLE, (ENERGY,))
    assert len(told) == communicate.MAX_HINTS


def test_a_process_that_ended_is_known_to_be_gone_only_where_its_number_means_something() -> None:
    place, started = this_process().rsplit(":", 1)
    host, number = place.rsplit(":", 1)
    assert not is_gone(this_process())
    assert is_gone(f"{place}:{int(started) - 1}")
    name = host.partition("/")[0]
    for elsewhere in (f"{name}/0123456789ab", name, "another"):
        assert not is_gone(f"{elsewhere}:{number}:{int(started) - 1}")
