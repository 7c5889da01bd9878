"""key_agreement and its way back with keys in NSS softoken, which derives by itself: the policy forbids the host to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hsmkm.dlms.agreement import GBCS_PREFIX, AlgorithmIds
from hsmkm.dlms.types import KeyId
from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.steps.agree import renew_by_agreement
from hsmkm.steps.party import Party
from hsmkm.steps.resolve import resolve
from hsmkm.token.derivation import Kdf, choose_rung
from tests.field import key_states
from tests.mechanisms import TITLE, moved
from tests.realm import Realm
from tests.steps.test_steps_agree import WAY_BACK, energy, injected

READING = 123_456


@pytest.fixture
def nss_realm(realm_on_nss: Callable[..., Realm]) -> Realm:
    return realm_on_nss("factory")


def derives_in_the_token(party: Party) -> bool:
    return not party.settings.policy.kdf_on_host and choose_rung(party.vault, Kdf.SP800) == "concatenate"


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("ids", [AlgorithmIds(), AlgorithmIds(GBCS_PREFIX)])
def test_a_guek_is_agreed_on_under_both_algorithm_ids(nss_realm: Realm, suite: int, ids: AlgorithmIds) -> None:
    line = injected(nss_realm, suite)
    before = dict(line.state.keys)
    with line.meter(MeterSettings(algorithms=ids)) as address, nss_realm.open("factory") as party:
        assert derives_in_the_token(party)
        moved(party, address)
        (outcome,) = renew_by_agreement(party, [TITLE], prove_refusal=True)
        assert (outcome.state, outcome.error) == ("active", None)
        assert energy(party) == READING
    assert {key_id for key_id in KeyId if line.state.keys[key_id] != before[key_id]} == {KeyId.GUEK}


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("key", ["wrapped", "one-pass"])
def test_a_lost_answer_is_led_back(nss_realm: Realm, suite: int, key: str) -> None:
    line = injected(nss_realm, suite, f'{WAY_BACK}way_back_key = "{key}"\n')
    with line.meter(MeterSettings(fault=Fault.DROP_AFTER)) as address, nss_realm.open("factory") as party:
        assert derives_in_the_token(party)
        moved(party, address)
        (outcome,) = renew_by_agreement(party, [TITLE])
        assert outcome.state == "unknown"
        assert resolve(party, TITLE).state == "active"
        assert energy(party) == READING
        assert key_states(party, 1) == [(1, "deactivated"), (2, "active")]
