"""Provision, inject, renew and read suites 1 and 2 against the independent meter: it never knew of this program."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from hsmkm.link.client import MeterRefusedError
from hsmkm.steps.inject import inject
from hsmkm.steps.renew import ALL_KEYS, GLOBAL_KEYS, renew
from hsmkm.steps.resolve import resolve
from tests.interop.conftest import running
from tests.interop.station import INJECTED, NEW, Station, build_station, stranger
from tests.realm import KEY_OCTETS, Realm

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("suite", [1, 2])
def test_every_key_is_injected_and_renewed_and_a_lost_answer_resolved(
    realm: Realm, gurux_python: Path, suite: int
) -> None:
    with ExitStack() as stack:
        station = build_station(realm, lambda *options: stack.enter_context(running(gurux_python, options)), suite)
        port = station.start(NEW)
        with realm.open("factory") as party:
            assert inject(party, NEW, f"127.0.0.1:{port}").state == "active"
            for roles in (GLOBAL_KEYS, ALL_KEYS):
                (outcome,) = renew(party, [NEW], roles, prove_refusal=True)
                assert outcome.state == "active"
                station.agrees(party, NEW)
        held = station.meter_keys(NEW)
        assert {len(key) for key in held.values()} == {KEY_OCTETS[suite]}
        initial = realm.initial_keys(suite)
        assert not set(held.values()) & set(initial.values())
        with pytest.raises(MeterRefusedError), stranger(port, NEW, initial, suite):
            pass
        with stranger(port, NEW, held, suite):
            pass
        resolved(station)


def resolved(station: Station) -> None:
    port = station.start(INJECTED, "--fault", "drop-after")
    with station.realm.open("factory") as party:
        station.moved(party, INJECTED, port)
        (outcome,) = renew(party, [INJECTED], GLOBAL_KEYS)
        assert outcome.state == "unknown"
        assert resolve(party, INJECTED).state == "active"
        station.agrees(party, INJECTED)
