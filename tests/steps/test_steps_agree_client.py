"""A key that was agreed on with a meter reaches the concentrator that reads it, which cannot have it before."""

from __future__ import annotations

import pytest

from hsmkm.simulator.state import load, save_to
from hsmkm.steps.agree import renew_by_agreement
from tests.field import deliver_meters, energy, open_field, state_path
from tests.mechanisms import TITLE, Line, certify_meter
from tests.realm import Realm


@pytest.mark.slow
def test_a_concentrator_that_is_a_client_gets_the_agreed_key_with_its_activation(realm: Realm) -> None:
    deliver_meters(realm, {1: 1})
    path = state_path(realm, 1)
    state = load(path)
    state.version, state.policy = 1, 0x6C
    certify_meter(Line(realm, 5, 1, {}, state, path), "utility")
    save_to(path)(state)
    folder = realm.home("utility") / "models"
    folder.mkdir(exist_ok=True)
    (folder / "virtual-1.toml").write_text('flags = ["MMM"]\nsuites = [1]\n[key_agreement]\nway_back = true\n')
    with open_field(realm) as field:
        field.serve()
        field.concentrate()
        assert [item.state for item in field.register(field.meters(1))] == ["active"]
        with realm.open("utility") as party:
            (outcome,) = renew_by_agreement(party, [TITLE], wait=30, prove_refusal=True)
            assert (outcome.state, outcome.generation, outcome.error) == ("active", 3, None)
            assert energy(party, 1) == 123_456
        assert field.key_states("concentrator", 1)[-1] == (3, "active")
        assert {state for _, state in field.package_states()} == {"accepted"}
