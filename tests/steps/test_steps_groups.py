"""Groups of virtual meters: they learn the next keys one by one, switch together, and take broadcasts once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from hsmkm.dlms import axdr, broadcast, general
from hsmkm.dlms.general import GeneralKeyed
from hsmkm.dlms.types import AttributeRef, KeyId
from hsmkm.dlms.xdlms import SetRequest
from hsmkm.errors import InputError, PolicyError, RefusedError
from hsmkm.link.tcp import TcpLink
from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.simulator.meter import CONSUMER_MESSAGE, Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import load, save_to
from hsmkm.steps import broadcast as broadcasts
from hsmkm.steps import group_members, group_renew
from hsmkm.steps import renew as renewal
from hsmkm.steps.broadcast import Protected
from hsmkm.steps.communicate import find_meter, read
from hsmkm.steps.credentials import open_key
from hsmkm.steps.group_members import Overview
from hsmkm.steps.group_renew import GroupRenewal
from hsmkm.steps.party import Party
from hsmkm.steps.renew import ALL_KEYS, GLOBAL_KEYS, renew
from hsmkm.steps.resolve import resolve
from hsmkm.store import check, counters, key_sets, key_states, meters
from hsmkm.store.groups import MemberState, Renewal
from hsmkm.store.key_set import KeyState
from hsmkm.store.store import Transaction
from hsmkm.token.types import KeyRole, Use
from tests.field import Field, state_path, wait_until
from tests.realm import TITLES, title_of

SERIALS = (1, 2, 3)
ALL = [title_of(serial) for serial in SERIALS]
PATIENCE = 5.0


def message(text: str, ref: AttributeRef = CONSUMER_MESSAGE) -> bytes:
    """A SET request that asks for no answer."""
    apdu = bytearray(SetRequest(1, ref, axdr.octet_string(text.encode())).encode())
    apdu[2] &= ~broadcast.CONFIRMED
    return bytes(apdu)


@dataclass
class Street:
    """A party that renews and broadcasts, and its meters."""

    party: Party
    meters: dict[str, Meter]
    ports: dict[str, int]
    stack: ExitStack = field(repr=False)

    def group(self, name: str = "north", titles: list[str] | None = None) -> GroupRenewal:
        group_members.create(self.party, name, 0)
        group_members.add(self.party, name, titles or ALL)
        return group_renew.renew(self.party, name)

    def behaves(self, title: str, fault: Fault | None, count: int = 1) -> None:
        """Put a meter in place of another with the same state, which fails at its next key transfers."""
        old = self.meters[title]
        new = Meter(old.state, MeterSettings(fault=fault, fault_count=count))
        (port,) = self.stack.enter_context(serving([new]))
        self.meters[title] = new
        self.moved(title, port)

    def moved(self, title: str, port: int) -> None:
        with self.party.store.begin("moved", title, {}) as tx:
            meters.update(tx, replace(meters.find(tx, title), address=f"127.0.0.1:{port}"))
        self.ports[title] = port

    def holds(self, name: str = "north") -> dict[str, str]:
        return {item.member.title: item.holds for item in self.show(name).standings}

    def show(self, name: str = "north") -> Overview:
        return group_members.overview(self.party, name)

    def keys(self, title: str) -> tuple[bytes, bytes]:
        """GBEK and GAK that a meter holds."""
        state = self.meters[title].state
        return state.keys[KeyId.GBEK], state.keys[KeyId.GAK]

    def broadcast(self, text: str, name: str = "north") -> Protected:
        protected = broadcasts.protect(self.party, name, message(text))
        broadcasts.send(self.party, protected)
        return protected

    def send_again(self, title: str, protected: Protected) -> None:
        with TcpLink("127.0.0.1", self.ports[title], PATIENCE) as link:
            link.send(protected.apdu, group_members.BROADCAST_CLIENT, 1)
        read(self.party, title, (CONSUMER_MESSAGE,))

    def texts(self) -> list[str]:
        """The message that each meter tells under its own keys, once what was sent before it is taken."""
        found = [read(self.party, title, (CONSUMER_MESSAGE,))[0].data.octets().decode() for title in ALL]
        assert found == [self.meters[title].state.message.decode() for title in ALL]
        return found

    def arrives(self, text: str, *titles: str) -> None:
        wanted = text.encode()
        wait_until(lambda: all(self.meters[title].state.message == wanted for title in titles))


@pytest.fixture
def street(field: Field) -> Iterator[Street]:
    with ExitStack() as stack:
        paths = [state_path(field.realm, serial) for serial in SERIALS]
        made = [Meter(load(path), save=save_to(path)) for path in paths]
        ports = stack.enter_context(serving(made))
        party = stack.enter_context(field.realm.open("factory"))
        found = Street(party, dict(zip(ALL, made, strict=True)), {}, stack)
        for title, port in zip(ALL, ports, strict=True):
            found.moved(title, port)
        yield found
        with party.store.read() as tx:
            assert list(check.check(tx)) == []


def test_members_learn_the_keys_and_a_broadcast_reaches_all(street: Street) -> None:
    before = {street.keys(title) for title in ALL}
    assert len(before) == 3
    done = street.group()
    assert done.switched
    assert [(item.state, item.error) for item in done.outcomes] == [("active", None)] * 3
    (shared,) = {street.keys(title) for title in ALL}
    assert shared not in before
    assert street.holds() == dict.fromkeys(ALL, "current")

    protected = broadcasts.protect(street.party, "north", message("hello"))
    deliveries = broadcasts.send(street.party, protected)
    assert {(item.state, item.can_open) for item in deliveries} == {("sent, unconfirmed", True)}
    street.arrives("hello", *ALL)
    layer = general.parse(protected.apdu)
    assert isinstance(layer, GeneralKeyed)
    assert (str(layer.title), layer.content.security_control) == (TITLES["factory"], 0x70)


def test_the_group_has_one_counter_and_a_replay_or_a_lower_one_is_refused(street: Street) -> None:
    street.group()
    first, second, third = (broadcasts.protect(street.party, "north", message(text)) for text in "abc")
    assert [later.counter - earlier.counter for earlier, later in pairwise((first, second, third))] == [1, 1]
    broadcasts.send(street.party, second)
    street.arrives("b", *ALL)
    for old in (first, second):
        street.send_again(ALL[0], old)
        assert street.texts() == ["b", "b", "b"]
    broadcasts.send(street.party, third)
    street.arrives("c", *ALL)


def test_until_all_have_the_next_keys_broadcasts_go_on_under_the_current_ones(street: Street) -> None:
    street.group()
    street.behaves(ALL[1], Fault.REJECT)
    done = group_renew.renew(street.party, "north")
    assert not done.switched
    assert {item.system_title: item.state for item in done.outcomes} == {
        ALL[0]: "active",
        ALL[1]: "unknown",
        ALL[2]: "active",
    }
    assert street.holds() == {ALL[0]: "next", ALL[1]: "in doubt", ALL[2]: "next"}
    assert street.show().waiting[0].member.title == ALL[1]

    protected = street.broadcast("old keys")
    assert protected.generation == 1
    street.arrives("old keys", ALL[1])
    assert street.texts() == ["", "old keys", ""]

    again = group_renew.renew(street.party, "north")
    assert again.switched
    assert {item.system_title for item in again.outcomes} == {ALL[1]}
    (shared,) = {street.keys(title) for title in ALL}
    assert street.broadcast("new keys").generation == 2
    street.arrives("new keys", *ALL)
    street.send_again(ALL[1], protected)
    assert street.texts() == ["new keys"] * 3
    assert shared == street.keys(ALL[0])


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.LIE])
def test_whatever_a_member_does_a_resumed_renewal_ends_with_one_key(street: Street, fault: Fault) -> None:
    street.behaves(ALL[2], fault)
    assert not street.group().switched
    with pytest.raises(RefusedError, match="has no keys in force"):
        broadcasts.protect(street.party, "north", message("too early"))
    assert group_renew.renew(street.party, "north").switched
    assert len({street.keys(title) for title in ALL}) == 1
    street.broadcast("hello")
    street.arrives("hello", *ALL)


def test_a_member_in_doubt_is_resolved_without_a_key_of_its_own(street: Street) -> None:
    street.behaves(ALL[2], Fault.DROP_BEFORE)
    street.group()
    outcome = resolve(street.party, ALL[2])
    assert (outcome.state, "hsmkm group renew north" in outcome.detail) == ("abandoned", True)
    assert street.holds()[ALL[2]] == "neither"
    assert group_renew.renew(street.party, "north").switched


class CrashedError(Exception):
    """The process is gone."""


@contextmanager
def crash(monkeypatch: pytest.MonkeyPatch, place: object, name: str) -> Iterator[None]:
    def dies(*_: object, **__: object) -> None:
        raise CrashedError

    with monkeypatch.context() as patched:
        patched.setattr(place, name, dies)
        with pytest.raises(CrashedError):
            yield


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (group_renew, "prepare"),
        (group_renew, "carry_out"),
        (renewal, "transfer_payload"),
        (renewal, "complete"),
        (group_renew, "switch"),
        (group_renew, "_begin_counter"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_renewal_that_died_at_any_step_goes_on(
    street: Street, monkeypatch: pytest.MonkeyPatch, place: object, name: str
) -> None:
    street.group()
    held = street.keys(ALL[0])
    with crash(monkeypatch, place, name):
        group_renew.renew(street.party, "north")
    assert {street.keys(title) for title in ALL} <= {held, gbek_and_gak(street, 2)}
    assert street.broadcast("still the old keys").generation == 1
    done = group_renew.renew(street.party, "north")
    assert done.switched
    assert {street.keys(title) for title in ALL} == {gbek_and_gak(street, 2)}
    assert street.broadcast("hello").generation == 2
    street.arrives("hello", *ALL)


def gbek_and_gak(street: Street, generation: int) -> tuple[bytes, bytes]:
    """Find the values of a group's keys among the wrapped ones that the meters' masters open."""
    from cryptography.hazmat.primitives.keywrap import aes_key_unwrap  # noqa: PLC0415 - only where values are compared

    party, title = street.party, ALL[0]
    seen = street.show()
    keys = next(item for item in (seen.next, seen.current) if item is not None and item.generation == generation)
    meter = find_meter(party, title)
    with party.store.read() as tx:
        masters = key_sets.active(tx, meter.system_title, 0, 1)
    assert masters is not None
    master = street.meters[title].state.keys[KeyId.MASTER]
    values = []
    with open_key(party, masters, KeyRole.MASTER, Use.IN_USE) as wrapping:
        for role in (KeyRole.GBEK, KeyRole.GAK):
            sealed = replace(masters, storage_key=keys.storage_key, keys=keys.keys)
            with open_key(party, sealed, role, Use.TRANSPORT) as key:
                values.append(aes_key_unwrap(master, party.vault.wrap(wrapping, key)))
    return values[0], values[1]


def test_a_counter_value_is_used_once_even_if_the_process_dies_over_it(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    street.group()
    before = street.broadcast("one").counter
    with crash(monkeypatch, broadcast, "protect"):
        street.broadcast("two")
    assert street.broadcast("three").counter == before + 2
    street.arrives("three", *ALL)


def test_the_next_keys_begin_above_every_counter_so_that_meters_that_keep_theirs_take_them(street: Street) -> None:
    street.group()
    for _ in range(5):
        last = street.broadcast("x").counter
    group_renew.renew(street.party, "north")
    assert street.broadcast("y").counter > last
    street.arrives("y", *ALL)
    group_members.remove(street.party, "north", [ALL[2]])
    street.group("south", [ALL[2]])
    assert street.broadcast("z", "south").counter > last
    street.arrives("z", ALL[2])


def test_two_groups_share_no_key_and_no_broadcast(street: Street) -> None:
    street.group("north", ALL[:2])
    street.group("south", ALL[2:])
    assert set(street.keys(ALL[0])).isdisjoint(street.keys(ALL[2]))
    protected = street.broadcast("north only")
    street.arrives("north only", *ALL[:2])
    street.send_again(ALL[2], protected)
    assert street.texts() == ["north only", "north only", ""]
    with pytest.raises(RefusedError, match="not every meter can be in group") as refused:
        group_members.add(street.party, "south", [ALL[0]])
    assert refused.value.reasons == (f"meter {ALL[0]} is in group north already",)


def test_a_meter_that_leaves_makes_a_renewal_necessary_and_does_not_get_it(street: Street) -> None:
    street.group()
    left = group_members.remove(street.party, "north", [ALL[2]])
    assert left.group.renewal is Renewal.REMOVED
    recorded = street.broadcast("it can still read this")
    assert recorded.generation == 1
    street.arrives("it can still read this", *ALL[:2])
    assert street.meters[ALL[2]].state.message == b""
    street.send_again(ALL[2], recorded)
    street.arrives("it can still read this", *ALL)
    assert group_renew.renew(street.party, "north").switched
    assert street.show().group.renewal is Renewal.NONE
    assert street.keys(ALL[2]) != street.keys(ALL[0])
    protected = street.broadcast("without it")
    street.arrives("without it", *ALL[:2])
    street.send_again(ALL[2], protected)
    assert street.texts() == ["without it", "without it", "it can still read this"]
    (own,) = renew(street.party, [ALL[2]], GLOBAL_KEYS)
    assert own.error is None


def test_after_a_compromise_nothing_is_broadcast_under_the_keys_it_betrayed(street: Street) -> None:
    street.group()
    group_members.remove(street.party, "north", [ALL[2]], compromised=True)
    with pytest.raises(PolicyError, match="a meter that left group north compromised has its keys"):
        street.broadcast("no")
    group_renew.renew(street.party, "north")
    street.broadcast("yes")
    street.arrives("yes", *ALL[:2])


def test_a_member_whose_keys_are_marked_compromised_stops_broadcasts(street: Street) -> None:
    street.group()
    with street.party.store.begin("meter-compromise", ALL[1], {}) as tx:
        key_set = key_sets.active(tx, bytes.fromhex(ALL[1]), 0, 1)
        assert key_set is not None
        key_states.transition(tx, key_set.ref, KeyState.COMPROMISED)
    with pytest.raises(PolicyError, match=f"member {ALL[1]} of group north is compromised"):
        street.broadcast("no")


def test_next_keys_that_a_leaving_meter_may_have_are_never_put_in_force(street: Street) -> None:
    street.group()
    street.behaves(ALL[1], Fault.REJECT)
    group_renew.renew(street.party, "north")
    given = street.keys(ALL[2])
    group_members.remove(street.party, "north", [ALL[2]])
    assert group_renew.renew(street.party, "north").switched
    assert street.keys(ALL[0]) == street.keys(ALL[1]) != given
    assert street.broadcast("hello").generation == 3


def test_members_can_be_left_out_of_the_switch_and_are_shown_as_such(street: Street) -> None:
    street.group()
    street.behaves(ALL[1], Fault.DROP_BEFORE, -1)
    assert not group_renew.renew(street.party, "north").switched
    done = group_renew.renew(street.party, "north", without=[ALL[1]])
    assert (done.switched, done.outcomes) == (True, ())
    assert street.holds() == {ALL[0]: "current", ALL[1]: "in doubt", ALL[2]: "current"}
    used = street.broadcast("without you")
    street.arrives("without you", ALL[0], ALL[2])
    street.behaves(ALL[1], None)
    assert resolve(street.party, ALL[1]).state == "abandoned"
    assert gbek_and_gak(street, used.generation) != street.keys(ALL[1])
    assert group_renew.renew(street.party, "north").switched
    assert len({street.keys(title) for title in ALL}) == 1
    with pytest.raises(InputError, match="is not in group north"):
        group_renew.renew(street.party, "north", without=[title_of(4)])


def test_a_member_is_renewed_by_itself_only_in_what_it_does_not_share(street: Street) -> None:
    street.group()
    shared = street.keys(ALL[0])
    guek = street.meters[ALL[0]].state.keys[KeyId.GUEK]
    (outcome,) = renew(street.party, [ALL[0]], GLOBAL_KEYS)
    assert outcome.detail == "renewed and verified: guek"
    assert street.meters[ALL[0]].state.keys[KeyId.GUEK] != guek
    assert street.keys(ALL[0]) == shared
    assert street.holds()[ALL[0]] == "current"
    for roles, why in (((KeyRole.GBEK,), "shares these keys with group north"), (ALL_KEYS, "a new master key")):
        (refused,) = renew(street.party, [ALL[0]], roles)
        assert why in refused.detail
        assert refused.state == "failed"


def test_no_key_and_counter_come_together_twice(street: Street) -> None:
    street.group()
    sent = []
    for _ in range(2):
        sent += [street.broadcast("x") for _ in range(3)]
        group_renew.renew(street.party, "north")
    assert len({(item.generation, item.counter) for item in sent}) == len(sent)
    with street.party.store.read() as tx:
        assert counter_of(street, tx) > max(item.counter for item in sent)


def counter_of(street: Street, tx: Transaction) -> int:
    keys = street.show().current
    assert keys is not None
    found = counters.current(tx, keys.key(KeyRole.GBEK).identity, bytes.fromhex(TITLES["factory"]))
    assert found is not None
    return found.next


@pytest.mark.parametrize(
    ("apdu", "why"),
    [
        (SetRequest(1, CONSUMER_MESSAGE, axdr.octet_string(b"x")).encode(), "asks for an answer"),
        (bytes.fromhex("C0018100010000600D00FF0200"), "no plain SET or ACTION"),
        (bytes.fromhex("C10181"), "malformed"),
        (b"", "no plain SET or ACTION"),
    ],
)
def test_only_an_unconfirmed_service_is_broadcast(street: Street, apdu: bytes, why: str) -> None:
    group_members.create(street.party, "north", 0)
    with pytest.raises(InputError, match=why):
        broadcasts.protect(street.party, "north", apdu)


def test_a_meter_out_of_reach_is_told_and_the_others_get_the_broadcast(street: Street) -> None:
    street.group()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        street.moved(ALL[1], taken.getsockname()[1])
        protected = broadcasts.protect(street.party, "north", message("hello"))
        deliveries = broadcasts.send(street.party, protected)
    assert [item.state for item in deliveries] == ["sent, unconfirmed", "failed", "sent, unconfirmed"]
    street.arrives("hello", ALL[0], ALL[2])


def test_a_group_is_one_suite_and_its_members_have_keys(street: Street) -> None:
    group_members.create(street.party, "north", 1)
    with pytest.raises(RefusedError) as refused:
        group_members.add(street.party, "north", [ALL[0]])
    assert refused.value.reasons == (f"meter {ALL[0]} is of security suite 0, the group of 1",)
    with pytest.raises(RefusedError, match="has no member to renew"):
        group_renew.renew(street.party, "north")
    for name in ("", "North", "a/b", "x" * 33):
        with pytest.raises(InputError, match="is no name for a group"):
            group_members.create(street.party, name, 0)
    with pytest.raises(RefusedError, match="is there already"):
        group_members.create(street.party, "north", 1)
    with pytest.raises(RefusedError, match="is not in group north"):
        group_members.remove(street.party, "north", [ALL[0]])
    assert all(item.member.state is MemberState.MEMBER for item in street.show().standings)
