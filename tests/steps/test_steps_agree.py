"""Renewal by key_agreement against the virtual meter: both suites, both AlgorithmIDs, every fault."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable

import pytest

from hsmkm.config import load_settings
from hsmkm.dlms import axdr
from hsmkm.dlms.agreement import (
    GBCS_PREFIX,
    AlgorithmIds,
    PublicShare,
    decode_key_agreement,
    encode_key_agreement,
)
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import PartlyDoneError, PolicyError, RefusedError
from hsmkm.simulator.behaviour import Activation, DroppedError, Fault, MeterSettings
from hsmkm.simulator.key_pairs import SoftwareSigner, generate, point_of
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.security_setup import Outcome as Answer
from hsmkm.simulator.security_setup import SecuritySetup
from hsmkm.simulator.server import serving
from hsmkm.steps.agree import renew_by_agreement
from hsmkm.steps.attest import check_store
from hsmkm.steps.communicate import read
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party
from hsmkm.steps.renew import InDoubtError
from hsmkm.steps.resolve import resolve
from hsmkm.store import renewals
from hsmkm.token.types import KeyRole
from tests.field import ENERGY, key_states
from tests.mechanisms import SIGNATURE, TITLE, Line, moved, set_up
from tests.proofs.held import hold, wait_held
from tests.proofs.search import Needles
from tests.realm import Realm

SUITE_1 = SecuritySuite.SUITE_1
WAY_BACK = "[key_agreement]\nway_back = true\n"


def energy(party: Party) -> object:
    (reading,) = read(party, TITLE, (ENERGY,))
    return reading.data.value


def injected(realm: Realm, suite: int, extra: str = WAY_BACK, mechanism: int = 5) -> Line:
    """A factory's meter that has keys of its own and takes ECDSA beside its mechanism, as the way back needs."""
    line = set_up(realm, mechanism, suite, extra)
    line.state.mechanisms |= {Mechanism.HLS_ECDSA}
    with line.meter() as address, realm.open("factory") as party:
        assert inject(party, TITLE, address).state == "active"
    return line


@pytest.mark.parametrize("suite", [1, 2])
def test_a_guek_is_agreed_on_whenever_it_takes_effect_and_the_old_one_refused(realm: Realm, suite: int) -> None:
    line = injected(realm, suite)
    before = dict(line.state.keys)
    for generation, activate in enumerate(Activation, 2):
        with line.meter(MeterSettings(activate=activate)) as address, realm.open("factory") as party:
            moved(party, address)
            (outcome,) = renew_by_agreement(party, [TITLE], prove_refusal=True)
            assert (outcome.state, outcome.error) == ("active", None)
            assert energy(party) == 123_456
            in_force = [number for number, state in key_states(party, 1) if state == "active"]
            assert in_force == [outcome.generation]
            assert outcome.generation >= generation
    assert {key_id for key_id in KeyId if line.state.keys[key_id] != before[key_id]} == {KeyId.GUEK}


@pytest.mark.parametrize("suite", [1, 2])
def test_the_other_algorithm_id_is_tried_where_the_models_own_does_not_associate(realm: Realm, suite: int) -> None:
    line = injected(realm, suite)
    settings = MeterSettings(algorithms=AlgorithmIds(GBCS_PREFIX))
    with line.meter(settings) as address, realm.open("factory") as party:
        moved(party, address)
        (outcome,) = renew_by_agreement(party, [TITLE])
        assert (outcome.state, outcome.generation) == ("active", 3)
        assert energy(party) == 123_456
        assert key_states(party, 1) == [(1, "deactivated"), (3, "active")]
        with party.store.read() as tx:
            assert renewals.listing(tx, bytes.fromhex(TITLE))[-1].to_generation == 3
        assert list(check_store(party)) == []


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("key", ["wrapped", "one-pass"])
def test_a_lost_answer_is_led_back_without_the_guek(realm: Realm, suite: int, key: str) -> None:
    line = injected(realm, suite, f'{WAY_BACK}way_back_key = "{key}"\n')
    with line.meter(MeterSettings(fault=Fault.DROP_AFTER)) as address, realm.open("factory") as party:
        moved(party, address)
        (outcome,) = renew_by_agreement(party, [TITLE])
        assert (outcome.state, type(outcome.error)) == ("unknown", InDoubtError)
        lost = line.state.keys[KeyId.GUEK]
        with pytest.raises(InDoubtError, match="under no key that is known here"):
            resolve(party, TITLE, go_on=False)
        assert key_states(party, 1) == [(1, "active")]
        outcome = resolve(party, TITLE)
        assert (outcome.state, outcome.generation) == ("active", 2)
        assert energy(party) == 123_456
        assert key_states(party, 1) == [(1, "deactivated"), (2, "active")]
        assert resolve(party, TITLE).state == "settled"
    assert line.state.keys[KeyId.GUEK] != lost


def test_a_meter_of_another_mechanism_is_led_back_by_that(realm: Realm) -> None:
    line = injected(realm, 1, WAY_BACK, mechanism=6)
    line.state.mechanisms = frozenset({Mechanism.HLS_SHA256})
    with line.meter(MeterSettings(fault=Fault.DROP_AFTER)) as address, realm.open("factory") as party:
        moved(party, address)
        assert renew_by_agreement(party, [TITLE])[0].state == "unknown"
        assert resolve(party, TITLE).state == "active"
        assert energy(party) == 123_456


def test_the_way_back_may_lose_its_answer_too_and_what_it_sent_is_not_forgotten(realm: Realm) -> None:
    line = injected(realm, 1)
    settings = MeterSettings(fault=Fault.DROP_AFTER, fault_count=2)
    with line.meter(settings) as address, realm.open("factory") as party:
        moved(party, address)
        assert renew_by_agreement(party, [TITLE])[0].state == "unknown"
        with pytest.raises(InDoubtError, match="the way back failed"):
            resolve(party, TITLE)
        assert key_states(party, 1) == [(1, "active"), (2, "pre-active")]
        sent = line.state.keys[KeyId.GUEK]
        assert resolve(party, TITLE).generation == 2
        assert line.state.keys[KeyId.GUEK] == sent
        assert energy(party) == 123_456


def test_a_meter_without_the_way_back_that_its_model_promises_stays_in_doubt(realm: Realm) -> None:
    line = injected(realm, 1)
    line.state.mechanisms = frozenset({Mechanism.HLS_GMAC})
    with line.meter(MeterSettings(fault=Fault.DROP_AFTER)) as address, realm.open("factory") as party:
        moved(party, address)
        assert renew_by_agreement(party, [TITLE])[0].state == "unknown"
        with pytest.raises(InDoubtError, match="the way back failed"):
            resolve(party, TITLE)
        assert key_states(party, 1) == [(1, "active")]


def test_what_was_derived_is_not_lost_with_the_connection_that_should_prove_it(realm: Realm) -> None:
    line = injected(realm, 1)
    begun = []

    def first_only(octets: int) -> bytes:
        begun.append(octets)
        if len(begun) > 1:
            raise DroppedError
        return secrets.token_bytes(octets)

    settings = MeterSettings(algorithms=AlgorithmIds(GBCS_PREFIX), challenge=first_only)
    with line.meter(settings) as address, realm.open("factory") as party:
        moved(party, address)
        (outcome,) = renew_by_agreement(party, [TITLE])
        assert outcome.state == "unknown"
        assert key_states(party, 1) == [(1, "active"), (2, "pre-active"), (3, "pre-active")]
        agreed_on = line.state.keys[KeyId.GUEK]
    with line.meter() as address, realm.open("factory") as party:
        moved(party, address)
        assert resolve(party, TITLE, go_on=False).generation == 3
        assert energy(party) == 123_456
        assert key_states(party, 1) == [(1, "deactivated"), (3, "active")]
    assert line.state.keys[KeyId.GUEK] == agreed_on


def test_a_key_under_a_third_algorithm_id_is_never_active_and_the_meter_led_back(realm: Realm) -> None:
    line = injected(realm, 1)
    strange = MeterSettings(algorithms=AlgorithmIds(bytes.fromhex("608574070803")))
    with line.meter(strange) as address, realm.open("factory") as party:
        moved(party, address)
        (outcome,) = renew_by_agreement(party, [TITLE])
        assert (outcome.state, type(outcome.error)) == ("unknown", InDoubtError)
        assert resolve(party, TITLE).generation == 4
        assert energy(party) == 123_456
        assert key_states(party, 1) == [(1, "deactivated"), (4, "active")]


@pytest.mark.parametrize("fault", [Fault.REJECT, Fault.DROP_BEFORE, Fault.LIE])
def test_a_meter_that_did_not_take_the_key_agrees_on_another(realm: Realm, fault: Fault) -> None:
    line = injected(realm, 1)
    before = line.state.keys[KeyId.GUEK]
    with line.meter(MeterSettings(fault=fault)) as address, realm.open("factory") as party:
        moved(party, address)
        (outcome,) = renew_by_agreement(party, [TITLE])
        assert outcome.state == "unknown"
        assert isinstance(outcome.error, PartlyDoneError)
        assert line.state.keys[KeyId.GUEK] == before
        assert resolve(party, TITLE).state == "active"
        assert energy(party) == 123_456
        with party.store.read() as tx:
            found = renewals.listing(tx, bytes.fromhex(TITLE))
        assert [item.state.value for item in found][-2:] == ["abandoned", "active"]
    assert line.state.keys[KeyId.GUEK] != before


class Liar(SecuritySetup):
    """A Security Setup whose key_agreement answers whatever a test says, and changes nothing."""

    answer: Callable[[PublicShare, SoftwareSigner], Data | None]

    def _agree(self, data: Data, _client: SystemTitle) -> Answer:
        (share,) = decode_key_agreement(self._state.suite, data)
        return Answer(data=self.answer(share, SoftwareSigner(self._state.key_pairs[SIGNATURE])))


def signed(key_id: KeyId, point: bytes, signer: SoftwareSigner) -> Data:
    return encode_key_agreement([PublicShare.sign(SUITE_1, key_id, point, signer)])


def fresh_point() -> bytes:
    return point_of(generate(SUITE_1).public_key())


LIES: dict[str, tuple[Callable[[PublicShare, SoftwareSigner], Data | None], str]] = {
    "nothing": (lambda _share, _signer: None, "without its own point"),
    "another type": (lambda _share, _signer: axdr.enum(0), ""),
    "our own point": (lambda share, signer: signed(KeyId.GUEK, share.point, signer), "our own point"),
    "our own share": (lambda share, _signer: encode_key_agreement([share]), ""),
    "another key_id": (lambda _share, signer: signed(KeyId.GAK, fresh_point(), signer), "for another key"),
    "another signer": (
        lambda _share, _signer: signed(KeyId.GUEK, fresh_point(), SoftwareSigner(generate(SUITE_1))),
        "",
    ),
}


def test_an_answer_that_is_not_the_meters_is_not_believed_and_nothing_kept_of_it(realm: Realm) -> None:
    line = injected(realm, 1)
    meter = Meter(line.state)
    liar = meter.security_setup = Liar(line.state, meter.settings, meter.activate, meter.changed)
    with serving([meter]) as (port,), realm.open("factory") as party:
        moved(party, f"127.0.0.1:{port}")
        for name, (lie, reason) in LIES.items():
            liar.answer = lie
            (outcome,) = renew_by_agreement(party, [TITLE])
            assert (outcome.state, type(outcome.error)) == ("unknown", InDoubtError), name
            assert reason in outcome.detail, name
            assert resolve(party, TITLE, go_on=False).state == "abandoned", name
            assert key_states(party, 1) == [(1, "active")]


def test_a_half_done_agreement_is_a_whole_one_because_each_call_has_one_key(realm: Realm) -> None:
    line = injected(realm, 1)
    with line.meter(MeterSettings(fault=Fault.FIRST_ONLY)) as address, realm.open("factory") as party:
        moved(party, address)
        assert renew_by_agreement(party, [TITLE])[0].state == "active"


def test_what_is_true_is_recorded_without_agreeing_again(realm: Realm) -> None:
    line = injected(realm, 1)
    with line.meter(MeterSettings(fault=Fault.REJECT)) as address, realm.open("factory") as party:
        moved(party, address)
        assert renew_by_agreement(party, [TITLE])[0].state == "unknown"
        assert resolve(party, TITLE, go_on=False).state == "abandoned"
        assert energy(party) == 123_456
        assert key_states(party, 1) == [(1, "active")]


def test_what_would_lock_a_meter_out_is_refused_and_says_why(realm: Realm) -> None:
    line = injected(realm, 1, "")
    with line.meter() as address, realm.open("factory") as party:
        moved(party, address)
        (outcome,) = renew_by_agreement(party, [TITLE])
        assert isinstance(outcome.error, RefusedError)
        assert "have no way back" in outcome.detail
        for role in (KeyRole.GAK, KeyRole.GBEK, KeyRole.MASTER):
            (outcome,) = renew_by_agreement(party, [TITLE], (role,))
            assert outcome.detail.startswith(f"a {role} key is not agreed on: ")
        with party.store.read() as tx:
            assert len(renewals.listing(tx, bytes.fromhex(TITLE))) == 1


@pytest.mark.parametrize(
    ("suite", "extra", "reason"),
    [
        (0, "", "security suite 0 has no public keys"),
        (1, "[security_setup]\nversion = 0\n", "is of version 0"),
        (1, "[protection]\npolicy = 0x24\n", "do not authenticate and encrypt everything"),
    ],
)
def test_a_model_that_cannot_agree_is_refused_before_its_meter_is_spoken_to(
    realm: Realm, suite: int, extra: str, reason: str
) -> None:
    set_up(realm, 5, suite, WAY_BACK + extra)
    with realm.open("factory") as party:
        moved(party, "127.0.0.1:9")
        (outcome,) = renew_by_agreement(party, [TITLE])
        assert isinstance(outcome.error, RefusedError)
        assert reason in outcome.detail


def test_the_policy_forbids_a_derivation_on_the_host_before_anything_is_sent(realm: Realm) -> None:
    line = injected(realm, 1)
    settings = realm.home("factory") / "hsmkm.toml"
    settings.write_text(settings.read_text().replace("kdf_on_host = true", "kdf_on_host = false"))
    before = line.state.keys[KeyId.GUEK]
    with line.meter() as address, realm.open("factory") as party:
        moved(party, address)
        with pytest.raises(PolicyError, match="through host memory"):
            renew_by_agreement(party, [TITLE])
        with party.store.read() as tx:
            assert len(renewals.listing(tx, bytes.fromhex(TITLE))) == 1
    assert line.state.keys[KeyId.GUEK] == before
    done = realm.cli("factory", "renew", "--by", "key-agreement", TITLE)
    assert (done.returncode, "policy.kdf_on_host" in done.stderr) == (5, True)


@pytest.mark.slow
@pytest.mark.parametrize("suite", [1, 2])
def test_a_token_that_derives_by_itself_agrees_where_the_policy_forbids_the_host(
    realm_on_nss: Callable[..., Realm], suite: int
) -> None:
    realm = realm_on_nss("factory")
    assert not load_settings(realm.home("factory")).policy.kdf_on_host
    line = injected(realm, suite)
    with line.meter(MeterSettings(algorithms=AlgorithmIds(GBCS_PREFIX))) as address, realm.open("factory") as party:
        moved(party, address)
        (outcome,) = renew_by_agreement(party, [TITLE], prove_refusal=True)
        assert (outcome.state, outcome.generation) == ("active", 3)
        assert energy(party) == 123_456


@pytest.mark.slow
def test_the_agreed_key_is_in_no_file_and_never_in_the_orchestrating_process(realm: Realm) -> None:
    line = injected(realm, 1)
    before = line.state.keys[KeyId.GUEK]
    with line.meter() as address:
        with realm.open("factory") as party:
            moved(party, address)
        with hold(realm, "factory", "renew", "--by", "key-agreement", TITLE) as held:
            wait_held(held)
            agreed_on = line.state.keys[KeyId.GUEK]
            needles = Needles({"guek": agreed_on})
            assert agreed_on != before
            assert needles.in_memory(os.getpid()), "the virtual meter has it in this process"
            assert needles.in_memory(held.process) == set()
            assert needles.in_command(held.process) == set()
        assert held.exit_code == 0, held.stderr
    assert needles.in_files(realm.folder) == {}
    assert needles.in_database(realm.home("factory") / "store.db") == set()
    planted = realm.home("factory") / "planted"
    planted.write_text(agreed_on.hex())
    assert list(needles.in_files(realm.folder)) == [str(planted)]
