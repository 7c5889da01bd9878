"""What must be renewed before all else: asked for, settled key by key, and only by what came after the asking."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hsmkm.store import check, key_sets, meters, urgent
from hsmkm.store.store import Store
from hsmkm.token.types import KeyRole
from tests.database import alter

if TYPE_CHECKING:
    from hsmkm.store.key_set import KeySetRef
    from tests.store.conftest import Factory, SoftwareAuthenticator

GUEK_AND_GAK = (KeyRole.GUEK, KeyRole.GAK)


def stored(store: Store, factory: Factory) -> KeySetRef:
    """A meter with one generation."""
    meter = factory.meter()
    key_set = key_sets.authenticate(factory.authenticator, factory.key_set(meter), meter)
    with store.begin("provision", "x", {}) as tx:
        meters.add(tx, meter)
        key_sets.add(tx, replace(key_set, batch=tx.sequence))
    return key_set.ref


def asked(store: Store) -> list[tuple[str, tuple[str, ...], str]]:
    with store.read() as tx:
        return [(item.title, tuple(role.value for role in item.roles), item.reason) for item in urgent.waiting(tx)]


def ask(store: Store, ref: KeySetRef, reason: str, *roles: KeyRole) -> None:
    with store.begin("ask", "x", {}) as tx:
        place = ref.system_title, ref.security_setup, ref.client
        urgent.queue(tx, *place, reason, roles) if roles else urgent.queue(tx, *place, reason)


def settle(store: Store, ref: KeySetRef, *roles: KeyRole) -> None:
    with store.begin("settle", "x", {}) as tx:
        urgent.settle(tx, ref, roles)


def test_it_waits_until_each_key_is_replaced(store: Store, factory: Factory) -> None:
    ref = stored(store, factory)
    title = ref.system_title.hex().upper()
    ask(store, ref, "lost")
    assert asked(store) == [(title, ("guek", "gak", "gbek"), "lost")]
    fresh = replace(ref, generation=2)
    settle(store, fresh, *GUEK_AND_GAK)
    assert asked(store) == [(title, ("gbek",), "lost")]
    settle(store, fresh, KeyRole.GBEK)
    assert asked(store) == []


def test_a_generation_that_was_there_before_settles_nothing(store: Store, factory: Factory) -> None:
    ref = stored(store, factory)
    ask(store, ref, "lost")
    settle(store, ref, *urgent.GLOBAL_ROLES)  # type: ignore[arg-type] # they are keys of a suite
    assert len(asked(store)) == 1


def test_asking_twice_joins_what_is_asked_and_asking_anew_begins_anew(store: Store, factory: Factory) -> None:
    ref = stored(store, factory)
    ask(store, ref, "lost", KeyRole.GUEK)
    ask(store, ref, "moved", KeyRole.GAK)
    ask(store, ref, "lost", KeyRole.GUEK)
    ((_, roles, reason),) = asked(store)
    assert (roles, reason) == (("guek", "gak"), "lost; moved")
    settle(store, replace(ref, generation=2), *GUEK_AND_GAK)
    ask(store, ref, "again", KeyRole.GBEK)
    ((_, roles, reason),) = asked(store)
    assert (roles, reason) == (("gbek",), "again")


def test_a_meter_that_is_not_ours_any_longer_waits_for_nothing(store: Store, factory: Factory) -> None:
    ref = stored(store, factory)
    ask(store, ref, "lost")
    with store.begin("withdraw", "x", {}) as tx:
        urgent.withdraw(tx, ref.system_title)
    assert asked(store) == []


def test_a_group_waits_for_keys_above_those_it_had(store: Store) -> None:
    with store.begin("ask", "x", {}) as tx:
        urgent.queue_group(tx, "north", 3, "a member is lost")
    assert asked(store) == [("north", ("gak", "gbek"), "a member is lost")]
    for generation, left in ((3, 1), (4, 0)):
        with store.begin("switch", "north", {}) as tx:
            urgent.settle_group(tx, "north", generation)
        assert len(asked(store)) == left


def test_an_altered_row_is_named(
    store: Store, factory: Factory, url: str, authenticator: SoftwareAuthenticator
) -> None:
    ask(store, stored(store, factory), "lost")
    store.close()
    alter(url, "UPDATE urgent_renewals SET settled = 1")
    with Store.open(url, authenticator, "tester") as again, again.read() as tx:
        assert [problem.table for problem in check.check(tx)] == ["urgent_renewals"]
