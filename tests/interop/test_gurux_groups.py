"""Broadcast groups against others: independent meters take the keys, gurux-dlms makes the same octets of a broadcast.

gurux-dlms has no meter that takes a broadcast without an association, so that reception is the virtual meter's alone.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hsmkm.dlms import axdr, broadcast, general
from hsmkm.dlms.general import GeneralKeyed
from hsmkm.dlms.types import AttributeRef, LogicalName
from hsmkm.dlms.xdlms import SetRequest
from hsmkm.steps import broadcast as broadcasts
from hsmkm.steps import group_members, group_renew
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from tests.interop.station import INJECTED, NEW, Station
from tests.realm import TITLES

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
BOTH = [NEW, INJECTED]
MESSAGE = AttributeRef(1, LogicalName.parse("0.0.96.13.0.255"), 2)


def grouped(station: Station, party: Party, *options: str) -> group_renew.GroupRenewal:
    """Inject the one meter, put both into a group, and renew; the options are for the second meter."""
    inject(party, NEW, f"127.0.0.1:{station.start(NEW)}")
    station.moved(party, INJECTED, station.start(INJECTED, *options))
    group_members.create(party, "north", 0)
    group_members.add(party, "north", BOTH)
    return group_renew.renew(party, "north")


def shared(station: Station) -> set[tuple[bytes, bytes]]:
    """GBEK and GAK as the meters' own files have them."""
    return {(keys["gbek"], keys["gak"]) for keys in map(station.meter_keys, BOTH)}


def test_independent_meters_share_the_keys_and_gurux_makes_the_same_broadcast(
    station: Station, gurux_python: Path
) -> None:
    with station.realm.open("factory") as party:
        assert grouped(station, party).switched
        ((gbek, gak),) = shared(station)
        for title in BOTH:
            station.agrees(party, title)
        (outcome,) = renew(party, [NEW], GLOBAL_KEYS)
        assert outcome.error is None
        assert shared(station) == {(gbek, gak)}
        plain = bytearray(SetRequest(1, MESSAGE, axdr.octet_string(b"hello")).encode())
        plain[2] &= ~broadcast.CONFIRMED
        protected = broadcasts.protect(party, "north", bytes(plain))
    layer = general.parse(protected.apdu)
    assert isinstance(layer, GeneralKeyed)
    assert layer.content.counter == protected.counter
    words = ["0", gbek.hex(), gak.hex(), TITLES["factory"], str(protected.counter), plain.hex()]
    command = [str(gurux_python), str(HERE / "gurux_broadcast.py"), *words]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    assert layer.content.payload.hex() == theirs


@pytest.mark.parametrize("fault", ["reject", "drop-before", "drop-after", "lie"])
def test_the_group_waits_for_an_independent_meter_that_fails(station: Station, fault: str) -> None:
    with station.realm.open("factory") as party:
        assert not grouped(station, party, "--fault", fault).switched
        assert group_renew.renew(party, "north").switched
        assert len(shared(station)) == 1
        for title in BOTH:
            station.agrees(party, title)


def test_a_meter_that_keeps_the_gak_only_cannot_be_told_from_one_that_keeps_both(station: Station) -> None:
    with station.realm.open("factory") as party:
        before = station.meter_keys(INJECTED)["gbek"]
        assert grouped(station, party, "--fault", "first-only").switched
        assert station.meter_keys(INJECTED)["gbek"] == before
        assert station.meter_keys(INJECTED)["gak"] == station.meter_keys(NEW)["gak"]
