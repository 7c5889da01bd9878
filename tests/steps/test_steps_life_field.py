"""What concentrators learn of the life of their meters' keys, with real processes."""

from __future__ import annotations

import pytest

from hsmkm.errors import TransportError
from hsmkm.steps.life import compromise, reassign, resume, suspend
from hsmkm.steps.urgent import renew_urgent
from hsmkm.store import check, holders, in_force, meters, urgent
from hsmkm.store.meter import MeterState
from tests.field import Field, energy, key_states, wait_until
from tests.realm import title_of

pytestmark = pytest.mark.slow
ONE = title_of(1)


def told(field: Field, name: str = "concentrator") -> tuple[str | None, str | None]:
    """State and address of the meter as a concentrator knows it."""
    with field.realm.open(name) as party, party.store.read() as tx:
        found = meters.require(tx, bytes.fromhex(ONE))
        assert list(check.check(tx)) == []
    return found.state, found.address


def receipted(field: Field, count: int) -> None:
    """Wait until so many packages were taken, and none refused."""
    wait_until(lambda: [state for _, state in field.package_states()].count("accepted") >= count)
    assert {state for _, state in field.package_states()} == {"accepted"}


def test_a_client_reads_no_suspended_meter_and_no_compromised_one(field: Field) -> None:
    field.serve()
    concentrator = field.concentrate()
    field.register(field.meters(1))
    before = len(field.package_states())
    with field.realm.open("utility") as party:
        suspend(party, [ONE])
    receipted(field, before + 1)
    with field.realm.open("utility") as party:
        resume(party, [ONE])
        compromise(party, [ONE], "opened")
    receipted(field, before + 3)
    with field.realm.open("utility") as party:
        assert [item.state for item in renew_urgent(party)] == ["active"]
        assert energy(party, 1) > 0
        states = key_states(party, 1)
    concentrator.stop()
    assert states == [(1, "compromised"), (2, "compromised"), (3, "active")]
    assert field.key_states("concentrator", 1) == states
    assert told(field)[0] is None


def test_the_former_concentrator_knows_nothing_current_and_serves_the_meter_no_more(field: Field) -> None:
    field.serve()
    client, relay = field.concentrate(), field.concentrate("other-concentrator")
    ((title, place),) = field.meters(1)
    field.register([(title, place)])
    before = len(field.package_states())
    with field.realm.open("utility") as party:
        (moved,) = reassign(party, [(ONE, place)], "other-concentrator", 20)
        assert (moved.state, moved.generation, moved.error) == ("active", 3, None)
        assert energy(party, 1) > 0
        with party.store.read() as tx:
            assert urgent.waiting(tx) == []
            fresh = in_force.in_meter(tx, bytes.fromhex(ONE), 0, 1)
            assert fresh is not None
            known = {
                item.identity for item in holders.for_meter(tx, bytes.fromhex(ONE)) if item.party == "concentrator"
            }
        assert known.isdisjoint(key.identity for key in fresh.keys if key.role.value != "master")
    receipted(field, before + 1)
    client.stop()
    assert field.key_states("concentrator", 1) == [(1, "deactivated"), (2, "deactivated")]
    assert told(field) == (MeterState.WITHDRAWN, None)

    client = field.concentrate()
    with field.realm.open("utility") as party:
        (back,) = reassign(party, [(ONE, place)], "concentrator", 20)
        assert (back.state, back.error) == ("active", None)
        wait_until(lambda: {state for _, state in field.package_states()} == {"accepted"})
        assert energy(party, 1) > 0
        relay.stop()
        assert energy(party, 1) > 0
    client.stop()
    assert told(field) == (None, place)
    assert told(field, "other-concentrator") == (MeterState.WITHDRAWN, None)


def test_what_the_former_concentrator_knows_is_asked_for_until_the_meter_answers(field: Field) -> None:
    field.serve()
    field.concentrate()
    relay = field.concentrate("other-concentrator")
    ((title, place),) = field.meters(1)
    field.register([(title, place)])
    relay.stop()
    with field.realm.open("utility") as party:
        (failed,) = reassign(party, [(ONE, place)], "other-concentrator", 1)
        assert failed.error is not None
        with pytest.raises(TransportError):
            energy(party, 1)
        with party.store.read() as tx:
            (asked,) = urgent.waiting(tx)
        assert {role.value for role in asked.roles} == {"guek", "gak", "gbek"}
        assert asked.reason == "concentrator concentrator knows them"
    field.concentrate("other-concentrator")
    with field.realm.open("utility") as party:
        wait_until(lambda: {state for _, state in field.package_states()} == {"accepted"})
        wait_until(lambda: {state for _, state in field.package_states(peer="other-concentrator")} == {"accepted"})
        assert [item.state for item in renew_urgent(party)] == ["active"]
        assert energy(party, 1) > 0
