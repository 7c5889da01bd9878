from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hsmkm.errors import IntegrityError, PolicyError, RefusedError
from hsmkm.store import key_sets, key_states, meters, models, orders
from hsmkm.store.check import check
from hsmkm.store.key_set import pack, unpack
from hsmkm.store.key_sets import KeySet, KeySetRef, KeyState, StoredKey
from hsmkm.store.models import ModelKeys
from hsmkm.store.store import Store
from hsmkm.token.types import KeyRole, SecretRole
from tests.database import is_file, path_of

if TYPE_CHECKING:
    from tests.store.conftest import Factory, SoftwareAuthenticator


def stored(store: Store, factory: Factory, generation: int = 1, state: KeyState = KeyState.PRE_ACTIVE) -> KeySet:
    meter = factory.meter()
    key_set = key_sets.authenticate(factory.authenticator, factory.key_set(meter, generation, state), meter)
    with store.begin("meter provision", meter.title, {}) as tx:
        if meters.get(tx, meter.system_title) is None:
            meters.add(tx, meter)
        key_sets.add(tx, key_set)
        batch = tx.sequence
    return replace(key_set, batch=batch)


def test_a_key_set_comes_back_as_it_was_stored(store: Store, factory: Factory) -> None:
    key_set = stored(store, factory)
    with store.read() as tx:
        assert key_sets.get(tx, key_set.ref) == key_set
        assert key_sets.newest(tx, key_set.ref.system_title, 0, 1) == key_set
        assert key_sets.newest(tx, key_set.ref.system_title, 0, 2) is None
        assert key_sets.active(tx, key_set.ref.system_title, 0, 1) is None
        assert key_sets.for_meter(tx, key_set.ref.system_title) == [(key_set, KeyState.PRE_ACTIVE)]


def test_provisioning_a_meter_takes_one_mac_and_each_transaction_one_more(
    store: Store, factory: Factory, authenticator: SoftwareAuthenticator
) -> None:
    with store.begin("x", "y", {}) as tx:
        models.intern(tx, "uti-1")
    authenticator.made = 0
    stored(store, factory)
    assert authenticator.made == 1 + 1


def test_a_key_set_names_the_audit_record_it_came_with(store: Store, factory: Factory) -> None:
    stored(store, factory)
    second = stored(store, factory, 2)
    with store.read() as tx:
        assert key_sets.get(tx, second.ref).batch == 2


def test_the_encoding_names_meter_mechanism_and_keys_in_this_order(factory: Factory) -> None:
    meter = replace(factory.meter(), order="ab")
    keys = (StoredKey(KeyRole.GUEK, bytes(16), bytes(24)),)
    key_set = KeySet(KeySetRef(meter.system_title, 0, 1, 1), 0, 1, KeyState.PRE_ACTIVE, keys)
    assert key_sets.encode(key_set, meter, 7).hex() == (
        "730000000f" + b"hsmkm key set/1".hex() + "730000000b" + b"hmac-sha256".hex() + "690000000107"
        "6200000008" + meter.system_title.hex() + "690000000100" + "690000000101" + "690000000101"
        "7300000008"
        + b"00000001".hex()
        + "7300000005"
        + b"uti-1".hex()
        + "7300000002"
        + b"ab".hex()
        + "690000000100"
        + "690000000100"
        + "690000000101"
        + "730000000a"
        + b"pre-active".hex()
        + "69000000010173"
        "00000004" + b"guek".hex() + "6200000010" + "00" * 16 + "6200000018" + "00" * 24
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"serial": "00000002"},
        {"model": "uti-2"},
        {"suite": 1},
        {"order": "another"},
        {"system_title": b"UTI\x00\x00\x00\x00\x02"},
    ],
)
def test_a_key_set_does_not_fit_another_meter(factory: Factory, changes: dict[str, Any]) -> None:
    meter = factory.meter()
    key_set = key_sets.authenticate(factory.authenticator, factory.key_set(meter), meter)
    key_sets.verify(factory.authenticator, key_set, meter)
    with pytest.raises(IntegrityError):
        key_sets.verify(factory.authenticator, key_set, factory.meter(**changes))


def test_two_roles_exchanged_do_not_fit_the_mac(factory: Factory) -> None:
    meter = factory.meter()
    key_set = key_sets.authenticate(factory.authenticator, factory.key_set(meter), meter)
    gak, guek = key_set.key(KeyRole.GAK), key_set.key(KeyRole.GUEK)
    others = tuple(key for key in key_set.keys if key.role not in (KeyRole.GAK, KeyRole.GUEK))
    swapped = (*others, replace(gak, role=KeyRole.GUEK), replace(guek, role=KeyRole.GAK))
    with pytest.raises(IntegrityError):
        key_sets.verify(factory.authenticator, replace(key_set, keys=swapped), meter)


def test_old_macs_stay_good_after_the_integrity_key_is_rotated(store: Store, factory: Factory) -> None:
    first = stored(store, factory)
    factory.authenticator.rotate()
    second = stored(store, factory, 2)
    assert second.mac is not None
    assert second.mac.key_number == 2
    with store.read() as tx:
        assert key_sets.get(tx, first.ref) == first
        assert key_sets.get(tx, second.ref) == second
        assert list(check(tx)) == []


@pytest.mark.parametrize("suite", [0, 1, 2])
def test_lengths_follow_the_suite(factory: Factory, suite: int) -> None:
    keys = factory.keys(suite)
    ref = KeySetRef(b"UTI\x00\x00\x00\x00\x01", 0, 1, 1)
    assert KeySet(ref, suite, 1, KeyState.ACTIVE, keys).keys == tuple(sorted(keys, key=lambda key: key.role.value))
    short = replace(keys[0], wrapped=keys[0].wrapped[:-8])
    with pytest.raises(RefusedError, match="octets"):
        KeySet(ref, suite, 1, KeyState.ACTIVE, (short, *keys[1:]))


def test_one_role_twice_no_key_at_all_and_unknown_suites_are_refused(factory: Factory) -> None:
    ref = KeySetRef(b"UTI\x00\x00\x00\x00\x01", 0, 1, 1)
    keys = factory.keys()
    for suite, chosen in ((0, (*keys, keys[0])), (0, ()), (3, keys)):
        with pytest.raises(RefusedError):
            KeySet(ref, suite, 1, KeyState.ACTIVE, chosen)


def test_packed_keys_are_read_strictly(factory: Factory) -> None:
    packed = pack(factory.keys())
    assert pack(unpack(packed, "row")) == packed
    for broken in (packed[:-1], packed + b"\x01", packed + b"\x01a", b"\x09" + packed[1:], b"\xff"):
        with pytest.raises(IntegrityError):
            unpack(broken, "row")


def test_what_carries_no_mac_is_not_stored(store: Store, factory: Factory) -> None:
    with store.begin("x", "y", {}) as tx, pytest.raises(IntegrityError, match="carries no mac"):
        key_sets.add(tx, factory.key_set(factory.meter()))


def test_a_place_that_is_taken_is_refused_and_nothing_of_the_batch_stays(store: Store, factory: Factory) -> None:
    key_set = stored(store, factory)
    second = key_sets.authenticate(factory.authenticator, factory.key_set(factory.meter(), 2), factory.meter())
    with pytest.raises(RefusedError, match="already"), store.begin("x", "y", {}) as tx:
        key_sets.add_many(tx, [second, key_set])
    with store.read() as tx:
        assert key_sets.generations(tx, key_set.ref.system_title, 0, 1) == [1]


def test_a_key_set_is_not_read_without_the_token(store: Store, factory: Factory, url: str) -> None:
    key_set = stored(store, factory)
    with Store.open(url, None, "reader") as listing, listing.read() as tx:
        with pytest.raises(PolicyError):
            key_sets.get(tx, key_set.ref)
        assert key_sets.for_meter(tx, key_set.ref.system_title) == [(key_set, KeyState.PRE_ACTIVE)]


def test_the_date_of_destruction_is_under_the_mac_however_many_sets_get_it(
    store: Store, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "PAGE", 2)
    made = [stored(store, factory, generation) for generation in range(1, 6)]
    moment = datetime(2027, 1, 1, tzinfo=UTC)
    with store.begin("x", "y", {}) as tx:
        key_sets.set_all_destroy_after(tx, [key_set.ref for key_set in made[1:]], moment)
        key_sets.set_destroy_after(tx, made[2].ref, None)
        with pytest.raises(RefusedError, match="there is no key set"):
            key_sets.set_destroy_after(tx, replace(made[0].ref, generation=9), moment)
    with store.read() as tx:
        found = [key_sets.get(tx, key_set.ref) for key_set in made]
        assert [item.destroy_after for item in found] == [None, moment, None, moment, moment]
        assert [item.mac == before.mac for item, before in zip(found, made, strict=True)] == [True, False] * 2 + [False]
        assert list(check(tx)) == []


def test_destruction_removes_the_keys_and_keeps_the_state(store: Store, factory: Factory, url: str) -> None:
    key_set = stored(store, factory)
    with store.begin("meter destroy", "x", {}) as tx:
        key_sets.destroy(tx, key_set.ref)
    with store.read() as tx:
        with pytest.raises(RefusedError, match="no key set"):
            key_sets.get(tx, key_set.ref)
        assert key_states.state(tx, key_set.ref) is KeyState.DESTROYED
        assert key_sets.next_generation(tx, key_set.ref.system_title, 0, 1) == 2
        assert list(check(tx)) == []
    store.close()
    if is_file(url):
        assert key_set.keys[0].wrapped not in path_of(url).read_bytes()


WAYS: dict[KeyState, tuple[KeyState, ...]] = {
    KeyState.PRE_ACTIVE: (),
    KeyState.ACTIVE: (KeyState.ACTIVE,),
    KeyState.SUSPENDED: (KeyState.ACTIVE, KeyState.SUSPENDED),
    KeyState.DEACTIVATED: (KeyState.ACTIVE, KeyState.DEACTIVATED),
    KeyState.COMPROMISED: (KeyState.ACTIVE, KeyState.COMPROMISED),
    KeyState.DESTROYED: (KeyState.DESTROYED,),
}
"""How a key set that was just made comes to each state."""


def documented_edges() -> dict[KeyState, set[KeyState]]:
    """Read the table of the page on the life cycle."""
    text = (Path(__file__).parents[2] / "docs" / "life-cycle.md").read_text(encoding="utf-8")
    table = text.partition("## Who knows a key")[0]
    rows = re.findall(r"^\| ([a-z-]+) \| ([a-z, -]+) \|", table, re.MULTILINE)
    return {KeyState(state): set(map(KeyState, re.findall(r"[a-z-]{2,}", to))) for state, to in rows[1:]}


@pytest.mark.parametrize("to", KeyState)
@pytest.mark.parametrize("present", KeyState)
def test_states_move_along_the_edges_only(store: Store, factory: Factory, present: KeyState, to: KeyState) -> None:
    ref = stored(store, factory).ref
    with store.begin("x", "y", {}) as tx:
        for step in WAYS[present]:
            key_states.transition(tx, ref, step)
    allowed = to in documented_edges()[present]
    assert allowed == (to in key_states.EDGES[present])
    refusal = pytest.raises(RefusedError, match=f"is {present} and cannot become {to}")
    with store.begin("x", "y", {}) as tx, nullcontext() if allowed else refusal:
        key_states.transition(tx, ref, to)
    with store.read() as tx:
        assert key_states.state(tx, ref) is (to if allowed else present)
        assert list(check(tx)) == []


def test_the_active_set_is_the_newest_active_one(store: Store, factory: Factory) -> None:
    first = stored(store, factory, 1, KeyState.ACTIVE)
    second = stored(store, factory, 2)
    title = first.ref.system_title
    with store.begin("renew", "x", {}) as tx:
        assert key_sets.active(tx, title, 0, 1) == first
        key_states.transition(tx, first.ref, KeyState.DEACTIVATED)
        assert key_sets.active(tx, title, 0, 1) is None
        key_states.transition(tx, second.ref, KeyState.ACTIVE)
        assert key_sets.active(tx, title, 0, 1) == second
        assert key_sets.generations(tx, title, 0, 1) == [1, 2]


def test_a_models_initial_keys_are_generation_0_of_all_its_meters(store: Store, factory: Factory) -> None:
    keys = ModelKeys("uti-1", 0, 1, factory.keys())
    with store.begin("model import", "uti-1", {}) as tx:
        models.add_keys(tx, keys)
        with pytest.raises(RefusedError, match="already"):
            models.add_keys(tx, keys)
    one, two = factory.meter(1), factory.meter(2)
    with store.read() as tx:
        first = models.initial(tx, "uti-1", one, 0, 1)
        second = models.initial(tx, "uti-1", two, 0, 1)
        assert models.listing(tx) == [("uti-1", True)]
        with pytest.raises(RefusedError, match="no initial keys"):
            models.initial(tx, "other", one, 0, 1)
    assert first.ref == KeySetRef(one.system_title, 0, 1, 0)
    assert second.ref.system_title == two.system_title
    assert first.keys == second.keys == keys.keys


def test_a_meters_order_is_covered_by_its_key_set(store: Store, factory: Factory) -> None:
    meter = factory.meter(order="cd" * 32)
    key_set = key_sets.authenticate(factory.authenticator, factory.key_set(meter), meter)
    with store.begin("x", "y", {}) as tx:
        with pytest.raises(RefusedError, match="no order"):
            meters.add(tx, meter)
        orders.add(tx, orders.Order("cd" * 32, "order.csv", 1))
        meters.add(tx, meter)
        key_sets.add(tx, key_set)
    with store.read() as tx:
        assert meters.get(tx, meter.system_title) == meter
        assert key_sets.get(tx, key_set.ref).keys == key_set.keys


def test_key_sets_sort_and_read_well() -> None:
    title = b"UTI\x00\x00\x00\x00\x01"
    assert KeySetRef(title, 0, 1, 1) < KeySetRef(title, 0, 1, 2)
    assert str(KeySetRef(title, 0, 1, 2)) == "5554490000000001/0/1/2"


@pytest.mark.parametrize("octets", [8, 16, 64])
@pytest.mark.parametrize("suite", [0, 2])
def test_secrets_are_packed_by_numbers_of_their_own_whatever_the_suite(
    factory: Factory, octets: int, suite: int
) -> None:
    keys = tuple(StoredKey(role, bytes([number]) * 16, bytes(octets + 8)) for number, role in enumerate(SecretRole))
    key_set = KeySet(KeySetRef(factory.meter().system_title, 0, 1, 1), suite, 1, KeyState.PRE_ACTIVE, keys)
    assert {key.role for key in unpack(pack(key_set.keys), "row")} == set(SecretRole)
    assert sorted(pack((key,))[0] for key in keys) == [4, 5]


@pytest.mark.parametrize("octets", [7, 12, 72])
def test_a_secret_of_another_length_is_refused(factory: Factory, octets: int) -> None:
    key = StoredKey(SecretRole.LLS, bytes(16), bytes(octets + 8))
    with pytest.raises(RefusedError, match="multiple of 8"):
        KeySet(KeySetRef(factory.meter().system_title, 0, 1, 1), 0, 1, KeyState.PRE_ACTIVE, (key,))
