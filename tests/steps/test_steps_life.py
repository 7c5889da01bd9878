"""The life of keys after they are in force: compromised, suspended, taken up again, whoever is at work on the meter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from hsmkm.errors import PartlyDoneError, PolicyError, RefusedError
from hsmkm.simulator.behaviour import Fault
from hsmkm.steps import broadcast, group_members, group_renew
from hsmkm.steps import renew as renewal
from hsmkm.steps.communicate import conversation, find_meter
from hsmkm.steps.exporting import export
from hsmkm.steps.life import compromise, resume, suspend
from hsmkm.steps.party import Party
from hsmkm.steps.renew import ALL_KEYS, GLOBAL_KEYS, renew
from hsmkm.steps.resolve import resolve_all
from hsmkm.steps.results import Outcome
from hsmkm.steps.urgent import renew_urgent
from hsmkm.store import in_force, key_sets, meters, urgent
from hsmkm.store.key_set import KeyState
from hsmkm.store.key_states import transition
from hsmkm.token.types import KeyRole
from tests.field import Field, energy, key_states
from tests.steps.test_steps_groups import message
from tests.street import ONE, OTHER, Street, open_street

PLACE = (0, 1)


@pytest.fixture
def street(field: Field) -> Iterator[Street]:
    with open_street(field.realm) as found:
        yield found


def asked(party: Party) -> dict[str, set[str]]:
    with party.store.read() as tx:
        return {item.title: {role.value for role in item.roles} for item in urgent.waiting(tx)}


def identities(party: Party, title: str) -> set[bytes]:
    """The identities of the keys that the meter holds."""
    with party.store.read() as tx:
        held = in_force.in_meter(tx, meters.find(tx, title).system_title, *PLACE)
    assert held is not None
    return {key.identity for key in held.keys}


def test_a_compromised_meter_is_read_no_more_and_every_key_of_it_is_replaced(street: Street) -> None:
    party = street.party
    renew(party, [ONE], GLOBAL_KEYS)
    assert energy(party, 1) > 0
    before = identities(party, ONE)
    (outcome,) = compromise(party, [ONE], "opened")
    assert (outcome.state, outcome.generation, outcome.error) == ("compromised", 2, None)
    assert key_states(party, 1) == [(1, "compromised"), (2, "compromised")]
    assert asked(party) == {ONE: {"guek", "gak", "gbek", "master"}}
    with pytest.raises(RefusedError, match="are compromised"):
        energy(party, 1)

    assert [item.state for item in renew_urgent(party)] == ["active"]
    assert asked(party) == {}
    assert key_states(party, 1) == [(1, "compromised"), (2, "compromised"), (3, "active")]
    assert identities(party, ONE).isdisjoint(before)
    assert energy(party, 1) > 0


def test_compromised_keys_are_not_carried_on_by_a_renewal_of_some(street: Street) -> None:
    compromise(street.party, [ONE], "opened")
    (outcome,) = renew(street.party, [ONE], (KeyRole.GUEK, KeyRole.GAK))
    assert outcome.error is not None
    assert "replace gbek, master in the same renewal" in outcome.detail
    assert key_states(street.party, 1) == [(1, "compromised")]
    (outcome,) = renew(street.party, [ONE], ALL_KEYS)
    assert (outcome.state, outcome.error) == ("active", None)


def test_compromised_keys_are_given_to_nobody(street: Street) -> None:
    compromise(street.party, [ONE], "opened")
    with pytest.raises(RefusedError) as caught:
        export(street.party, "delivery", "utility", (ONE,), None)
    assert "its keys are compromised" in caught.value.reasons[0]


def test_a_compromise_during_a_renewal_leaves_no_generation_in_force(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meter takes the fresh keys, which travelled under keys that somebody knows."""
    party, complete = street.party, renewal.complete

    def meanwhile(work: renewal.Work) -> Outcome:
        compromise(party, [ONE], "stolen while it was renewed")
        return complete(work)

    monkeypatch.setattr(renewal, "complete", meanwhile)
    (outcome,) = renew(party, [ONE], GLOBAL_KEYS)
    monkeypatch.undo()
    assert (outcome.state, type(outcome.error)) == ("compromised", PartlyDoneError)
    assert key_states(party, 1) == [(1, "compromised"), (2, "compromised")]
    assert asked(party) == {ONE: {"guek", "gak", "gbek", "master"}}
    with pytest.raises(RefusedError, match="are compromised"):
        energy(party, 1)
    assert [item.state for item in renew_urgent(party)] == ["active"]
    assert key_states(party, 1)[-1] == (3, "active")
    assert energy(party, 1) > 0


@pytest.mark.parametrize("fault", [Fault.DROP_AFTER, Fault.DROP_BEFORE])
def test_a_meter_that_is_in_doubt_when_it_is_compromised_is_found_and_renewed(street: Street, fault: Fault) -> None:
    party = street.party
    street.fails_once(ONE, fault)
    (lost,) = renew(party, [ONE], GLOBAL_KEYS)
    assert lost.state == "unknown"
    compromise(party, [ONE], "opened")
    assert {state for _, state in key_states(party, 1)} == {"compromised"}
    assert [item.state for item in renew_urgent(party)] == ["active"]
    assert asked(party) == {}
    assert [state for _, state in key_states(party, 1)].count("active") == 1
    assert energy(party, 1) > 0


def test_what_resolve_gathers_from_compromised_keys_is_compromised(street: Street) -> None:
    party = street.party
    street.fails_once(ONE, Fault.DROP_AFTER)
    renew(party, [ONE], (KeyRole.GUEK,))
    compromise(party, [ONE], "opened")
    for outcome in resolve_all(party, ONE):
        assert outcome.state in ("compromised", "abandoned")
    assert {state for _, state in key_states(party, 1)} == {"compromised"}
    assert asked(party) == {ONE: {"guek", "gak", "gbek", "master"}}


def test_a_compromised_member_leaves_its_group_which_is_renewed_without_it(street: Street) -> None:
    party = street.party
    group_members.create(party, "north", 0)
    group_members.add(party, "north", [ONE, OTHER])
    group_renew.renew(party, "north")
    compromise(party, [ONE], "opened")
    assert set(asked(party)) == {"north", ONE}
    with pytest.raises(PolicyError, match="compromised has its keys"):
        broadcast.protect(party, "north", message("hello"))
    assert {(item.system_title, item.state) for item in renew_urgent(party)} == {(ONE, "active"), (OTHER, "active")}
    assert asked(party) == {}
    assert identities(party, ONE).isdisjoint(identities(party, OTHER))
    assert broadcast.protect(party, "north", message("hello")).generation == 2


def test_nothing_is_spoken_with_a_suspended_meter(street: Street) -> None:
    party = street.party
    (outcome,) = suspend(party, [ONE])
    assert (outcome.state, outcome.generation) == ("suspended", 1)
    assert key_states(party, 1) == [(1, "suspended")]
    served = len(street.meters[ONE].state.keys), street.meters[ONE].state.keys.copy()
    with pytest.raises(RefusedError, match="is suspended: it is not spoken with"):
        energy(party, 1)
    for outcome in (*renew(party, [ONE], GLOBAL_KEYS), *resolve_all(party, ONE), *suspend(party, [ONE])):
        assert outcome.error is not None
        assert "is suspended" in outcome.detail
    with pytest.raises(RefusedError) as caught:
        export(party, "delivery", "utility", (ONE,), None)
    assert "it is suspended" in caught.value.reasons[0]
    assert (len(street.meters[ONE].state.keys), street.meters[ONE].state.keys) == served

    (outcome,) = resume(party, [ONE])
    assert (outcome.state, outcome.generation) == ("resumed", 1)
    assert key_states(party, 1) == [(1, "active")]
    assert energy(party, 1) > 0


def test_what_is_compromised_while_suspended_is_renewed_after_it_is_resumed(street: Street) -> None:
    party = street.party
    suspend(party, [ONE])
    compromise(party, [ONE], "opened")
    (refused,) = renew_urgent(party)
    assert refused.error is not None
    resume(party, [ONE])
    assert key_states(party, 1) == [(1, "compromised")]
    with pytest.raises(RefusedError, match="are compromised"):
        energy(party, 1)
    assert [item.state for item in renew_urgent(party)] == ["active"]
    assert energy(party, 1) > 0


def test_a_meter_is_not_suspended_while_somebody_speaks_with_it_and_is_compromised_all_the_same(street: Street) -> None:
    party = street.party
    with conversation(party, find_meter(party, ONE)):
        (refused,) = suspend(party, [ONE])
        assert refused.error is not None
        assert "is held by" in refused.detail
        (done,) = compromise(party, [ONE], "opened")
        assert done.error is None


def test_a_meter_that_is_not_suspended_is_not_resumed(street: Street) -> None:
    (outcome,) = resume(street.party, [ONE])
    assert "is not suspended" in outcome.detail


def test_what_a_renewal_abandoned_is_not_taken_for_what_the_meter_holds(street: Street) -> None:
    """The generation that was prepared and never sent is compromised with the others, and newer."""
    party = street.party
    with party.store.begin("moved", ONE, {}) as tx:
        found = meters.find(tx, ONE)
        meters.update(tx, replace(found, address="127.0.0.1:1"))
    (outcome,) = renew(party, [ONE], GLOBAL_KEYS)
    assert outcome.state == "failed"
    with party.store.begin("moved", ONE, {}) as tx:
        meters.update(tx, found)
    compromise(party, [ONE], "opened")
    assert key_states(party, 1) == [(1, "compromised"), (2, "compromised")]
    with party.store.read() as tx:
        held = in_force.compromised(tx, found.system_title, *PLACE)
    assert held is not None
    assert held.ref.generation == 1
    assert [item.state for item in renew_urgent(party)] == ["active"]


def test_a_compromised_generation_cannot_be_put_in_force_by_hand(street: Street) -> None:
    party = street.party
    compromise(party, [ONE], "opened")
    with party.store.read() as tx:
        ((key_set, _),) = key_sets.for_meter(tx, find_meter(party, ONE).system_title)
    with (
        pytest.raises(RefusedError, match="is compromised and cannot become active"),
        party.store.begin("x", "y", {}) as tx,
    ):
        transition(tx, key_set.ref, KeyState.ACTIVE)
