"""The independent meter behind a concentrator: registered, renewed and read over TLS and the gateway prefix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hsmkm.dlms.types import KeyId
from hsmkm.simulator.state import load
from hsmkm.steps import client_reading
from hsmkm.steps.party import Party
from hsmkm.steps.register import register
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.steps.resolve import resolve, unfinished
from tests.field import ENERGY, Field, energy, key_states, state_path
from tests.interop.station import READING, StartMeter
from tests.realm import title_of

pytestmark = pytest.mark.slow

HABITS = [(activate, *reset) for activate in ("now", "after-response", "release") for reset in ((), ("--ic-reset",))]
FAULTS = ("reject", "drop-before", "drop-after", "lie", "first-only")


def start(field: Field, start_meter: StartMeter, serial: int, *options: str) -> tuple[str, str]:
    """Start an independent meter that holds what a virtual one was injected with; gives (title, address)."""
    state = load(state_path(field.realm, serial))
    keys = {str(int(key_id)): state.keys[key_id].hex() for key_id in KeyId}
    path = _path(field, serial)
    path.write_text(json.dumps({"keys": keys, "tx_ic": state.tx_ic, "rx_ic": state.rx_ic - 1}))
    port = start_meter("--system-title", title_of(serial), "--state", str(path), *options)
    return title_of(serial), f"127.0.0.1:{port}"


def _path(field: Field, serial: int) -> Path:
    return field.realm.folder / f"gurux-{serial}.json"


def test_every_habit_of_a_meter_is_registered_renewed_and_read(field: Field, start_meter: StartMeter) -> None:
    field.serve()
    field.concentrate()
    serials = range(1, len(HABITS) + 1)
    before = {serial: load(state_path(field.realm, serial)).keys for serial in serials}
    places = [
        start(field, start_meter, serial, "--activate", *habit) for serial, habit in zip(serials, HABITS, strict=True)
    ]
    # One that restarts its counter at once answers under the old GUEK as a recording would, and is resolved.
    doubtful = title_of(1 + HABITS.index(("now", "--ic-reset")))
    with field.realm.open("utility") as party:
        outcomes = register(party, places, "concentrator", 30)
        assert [item.system_title for item in outcomes if item.error] == [doubtful]
        assert resolve(party, doubtful).generation == 2
        outcomes = renew(party, [title for title, _ in places], GLOBAL_KEYS, prove_refusal=True)
        assert [item.system_title for item in outcomes if item.error] == [doubtful]
        assert resolve(party, doubtful).generation == 3
        assert [energy(party, serial) for serial in serials] == [READING] * len(HABITS)
    for serial in serials:
        held = json.loads(_path(field, serial).read_text())["keys"]
        changed = [key_id for key_id in KeyId if held[str(int(key_id))] != before[serial][key_id].hex()]
        assert changed == [KeyId.GUEK, KeyId.GBEK, KeyId.GAK]
    states = [(1, "deactivated"), (2, "deactivated"), (3, "active")]
    assert [field.key_states("concentrator", serial) for serial in serials] == [states] * len(HABITS)
    with field.realm.open("concentrator") as party:
        assert [read_by_itself(party, serial) for serial in serials] == [READING] * len(HABITS)
    with field.realm.open("utility") as party:
        assert [energy(party, serial) for serial in serials] == [READING] * len(HABITS)


def read_by_itself(party: Party, serial: int) -> object:
    """Read a meter as the client that the concentrator is."""
    (measured,) = client_reading.measure(party, title_of(serial), (ENERGY,))
    return measured.data.value if measured.data else measured.error


def test_every_fault_during_a_renewal_is_resolved_and_the_client_follows(field: Field, start_meter: StartMeter) -> None:
    field.serve()
    field.concentrate()
    serials = range(1, len(FAULTS) + 1)
    places = [
        start(field, start_meter, serial, "--fault", fault) for serial, fault in zip(serials, FAULTS, strict=True)
    ]
    titles = [title for title, _ in places]
    with field.realm.open("utility") as party:
        outcomes = register(party, places, "concentrator", 30)
        assert {item.system_title: item.state for item in outcomes} == dict.fromkeys(titles, "unknown")
        assert unfinished(party) == titles
        for title in titles:
            assert resolve(party, title).error is None
        assert unfinished(party) == []
        for serial in serials:
            assert energy(party, serial) == READING
        in_force = {serial: key_states(party, serial)[-1] for serial in serials}
    assert {state for _, state in in_force.values()} == {"active"}
    for serial in serials:
        held = field.key_states("concentrator", serial)
        assert held[-1] == in_force[serial]
        assert [state for _, state in held].count("active") == 1
