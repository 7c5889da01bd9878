from __future__ import annotations

import pytest

from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, SecuritySuite, SystemTitle
from hsmkm.simulator.behaviour import DroppedError
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.session import Session
from hsmkm.simulator.state import MeterState
from hsmkm.steps.communicate import read
from hsmkm.steps.inject import inject
from hsmkm.steps.provision import provision
from tests.realm import Realm, title_of

RELEASE_REQUEST = 0x62
ENERGY = AttributeRef(3, LogicalName.parse("1.0.1.8.0.255"), 2)


def factory_new(realm: Realm, serial: int) -> Meter:
    keys = {KeyId[name.upper()]: value for name, value in realm.initial_keys().items()}
    return Meter(MeterState(SystemTitle.parse(title_of(serial)), SecuritySuite.SUITE_0, keys))


def test_a_meter_that_hangs_up_in_place_of_a_release_has_done_all_that_was_asked(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Session.receive

    def hang_up(session: Session, apdu: bytes, client_sap: int) -> bytes:
        if apdu[0] == RELEASE_REQUEST:
            raise DroppedError
        return answer(session, apdu, client_sap)

    monkeypatch.setattr(Session, "receive", hang_up)
    meter = factory_new(realm, 1)
    initial = dict(meter.state.keys)
    with realm.open("factory") as party, serving([meter]) as (port,):
        provision(party, realm.order(1), "line")
        outcome = inject(party, title_of(1), f"127.0.0.1:{port}")
        assert (outcome.state, outcome.error) == ("active", None)
        assert [item.data.value for item in read(party, title_of(1), (ENERGY,))] == [123456]
    assert all(meter.state.keys[key_id] != value for key_id, value in initial.items())
