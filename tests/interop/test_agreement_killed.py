"""A key_agreement killed while the meter's half of the key is on its way: the virtual meter is led back."""

from __future__ import annotations

import pytest

from hsmkm.dlms.types import KeyId
from hsmkm.simulator.behaviour import Activation, MeterSettings
from tests.field import key_states
from tests.interop.test_gurux_killed import held_back, killed_at_transfer
from tests.mechanisms import TITLE, moved
from tests.realm import Realm
from tests.steps.test_steps_agree import energy, injected


@pytest.mark.slow
def test_a_meter_whose_half_of_the_key_died_with_the_process_is_led_back(realm: Realm) -> None:
    line = injected(realm, 1)
    before = line.state.keys[KeyId.GUEK]
    with (
        line.meter(MeterSettings(activate=Activation.NOW)) as address,
        held_back(int(address.rpartition(":")[2])) as (
            relay,
            held,
        ),
    ):
        with realm.open("factory") as party:
            moved(party, f"127.0.0.1:{relay.port}")
        killed_at_transfer(realm, held, True, "renew", "--by", "key-agreement", TITLE)
        lost = line.state.keys[KeyId.GUEK]
        assert lost != before
        rows = realm.rows("factory", "meter", "show", TITLE)
        assert [row["state"] for row in rows if row["kind"] == "renewal"] == ["active", "sent"]
        assert [row["state"] for row in rows if row["kind"] == "way back"] == ["open"]
        (done,) = realm.rows("factory", "resolve", TITLE)
        assert done["state"] == "active"
        with realm.open("factory") as party:
            assert energy(party) == 123_456
            assert key_states(party, 1) == [(1, "deactivated"), (2, "active")]
    assert line.state.keys[KeyId.GUEK] not in (before, lost)
