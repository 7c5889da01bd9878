"""A virtual meter with two associations: each client has keys, counters and a Security Setup object of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hsmkm.dlms.types import KeyId, SecuritySuite, SystemTitle
from hsmkm.errors import InputError
from hsmkm.simulator.behaviour import Fault, Faults, MeterSettings
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.state import MeterState, decode, encode, load, save_to

TITLE = SystemTitle.parse("4D4D4D0000000001")


def state(setup: int = 0, client: int | None = None, *further: MeterState, title: SystemTitle = TITLE) -> MeterState:
    keys = {key_id: bytes([setup, key_id]) * 8 for key_id in KeyId}
    return MeterState(
        title, SecuritySuite.SUITE_0, keys, setup=setup, client=client, associations=list(further), rx_ic=10 * setup
    )


def test_a_state_file_keeps_every_association(tmp_path: Path) -> None:
    save_to(tmp_path / "meter.json")(state(0, None, state(1, 2), state(7, 3)))
    found = load(tmp_path / "meter.json")
    assert encode(found) == encode(state(0, None, state(1, 2), state(7, 3)))
    assert [(one.setup, one.client, one.rx_ic) for one in found.associations] == [(1, 2, 10), (7, 3, 70)]
    assert found.associations[0].keys != found.keys


def test_a_state_of_one_association_reads_as_it_always_did() -> None:
    document = json.loads(encode(state()))
    del document["associations"]
    assert decode(json.dumps(document)).associations == []


def test_certificates_are_the_devices_and_keys_the_associations() -> None:
    whole = decode(encode(state(0, None, state(1, 2))))
    (other,) = whole.associations
    assert other.certificates is whole.certificates
    assert other.key_pairs is whole.key_pairs


@pytest.mark.parametrize(
    "further",
    [
        (state(1),),
        (state(1, 16),),
        (state(0, 2),),
        (state(1, 2), state(2, 2)),
        (state(1, 2), state(1, 3)),
        (state(1, 2, title=SystemTitle.parse("4D4D4D0000000002")),),
    ],
)
def test_associations_that_cannot_be_told_apart_are_refused(further: tuple[MeterState, ...]) -> None:
    with pytest.raises(InputError, match=r"association"):
        state(0, None, *further)


def test_what_one_association_changes_is_saved_with_the_device_and_changes_no_other() -> None:
    saved: list[str] = []
    meter = Meter(state(0, None, state(1, 2)), save=lambda whole: saved.append(encode(whole)))
    reading = meter.towards(2)
    assert reading is not meter
    assert meter.towards(1) is meter.towards(99) is meter
    reading.activate({KeyId.GUEK: bytes(16)})
    (text,) = saved
    assert decode(text).associations[0].keys[KeyId.GUEK] == bytes(16)
    assert decode(text).keys == state().keys
    assert (meter.generation, reading.generation) == (0, 1)


def test_a_fault_hits_the_security_setup_that_it_is_for_so_often_in_all() -> None:
    faults = Faults(MeterSettings(fault=Fault.LIE, fault_count=2, fault_setup=1))
    assert [faults.next(setup) for setup in (0, 1, 0, 1, 1)] == [None, Fault.LIE, None, Fault.LIE, None]
    everywhere = Faults(MeterSettings(fault=Fault.LIE, fault_count=1))
    assert [everywhere.next(setup) for setup in (1, 0)] == [Fault.LIE, None]
