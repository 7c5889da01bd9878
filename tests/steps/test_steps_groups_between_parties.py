"""Groups in packages: a concentrator and the next owner learn who shares keys, and broadcasts pass a concentrator."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hsmkm.dlms import axdr, broadcast
from hsmkm.dlms.types import KeyId
from hsmkm.dlms.xdlms import SetRequest
from hsmkm.errors import RefusedError
from hsmkm.simulator.meter import CONSUMER_MESSAGE, Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import load, save_to
from hsmkm.steps import broadcast as broadcasts
from hsmkm.steps import group_members, group_renew
from hsmkm.steps.exporting import export
from hsmkm.steps.receive import receive_file
from hsmkm.store import check, groups, key_sets, meters
from hsmkm.token.types import KeyRole
from tests.field import Field, deliver_meters, state_path, wait_until
from tests.realm import Realm, title_of

pytestmark = pytest.mark.slow

SERIALS = (1, 2)
TITLES = [title_of(serial) for serial in SERIALS]


def message(text: str) -> bytes:
    apdu = bytearray(SetRequest(1, CONSUMER_MESSAGE, axdr.octet_string(text.encode())).encode())
    apdu[2] &= ~broadcast.CONFIRMED
    return bytes(apdu)


def gbek_identities(realm: Realm, name: str) -> set[bytes]:
    """The identities of the members' newest GBEKs at a party whose store has no problem and that knows the group."""
    with realm.open(name) as party, party.store.read() as tx:
        assert list(check.check(tx)) == []
        found = [key_sets.newest(tx, bytes.fromhex(title), 0, 1) for title in TITLES]
    return {key_set.key(KeyRole.GBEK).identity for key_set in found if key_set is not None}


def test_a_client_learns_the_group_and_a_broadcast_passes_it(field: Field) -> None:
    field.serve()
    field.concentrate()
    assert [item.error for item in field.register(field.meters(*SERIALS))] == [None, None]
    with field.realm.open("utility") as party:
        group_members.create(party, "north", 0)
        group_members.add(party, "north", TITLES)
        done = group_renew.renew(party, "north")
        assert done.switched
        assert [item.error for item in done.outcomes] == [None, None]
        deliveries = broadcasts.send(party, broadcasts.protect(party, "north", message("hello")))
    assert [item.detail for item in deliveries] == ["through concentrator"] * 2
    wait_until(lambda: all(load(state_path(field.realm, serial)).message == b"hello" for serial in SERIALS))
    with field.realm.open("concentrator") as party, party.store.read() as tx:
        assert [member.title for member in groups.members(tx, "utility/north")] == TITLES
    (shared,) = gbek_identities(field.realm, "concentrator")
    assert gbek_identities(field.realm, "utility") == {shared}
    with field.realm.open("concentrator") as party:
        with pytest.raises(RefusedError, match="group utility/north is that of utility"):
            group_renew.renew(party, "utility/north")
        with pytest.raises(RefusedError, match="group utility/north is that of utility"):
            broadcasts.protect(party, "utility/north", message("no"))


def test_a_delivery_names_the_group_and_the_next_owner_makes_its_own(field: Field) -> None:
    made = [Meter(load(path), save=save_to(path)) for path in (state_path(field.realm, serial) for serial in SERIALS)]
    with serving(made) as ports:
        with field.realm.open("factory") as party:
            with party.store.begin("moved", "meters", {}) as tx:
                for title, port in zip(TITLES, ports, strict=True):
                    meters.update(tx, replace(meters.find(tx, title), address=f"127.0.0.1:{port}"))
            group_members.create(party, "north", 0)
            group_members.add(party, "north", TITLES)
            assert group_renew.renew(party, "north").switched
            sent = export(party, "delivery", "utility", tuple(TITLES), None)
        with field.realm.open("utility") as party:
            receive_file(party, sent.path)
            with party.store.read() as tx:
                names = {groups.group_of(tx, bytes.fromhex(title), 0, 1) for title in TITLES}
                own = {groups.own_group_of(tx, bytes.fromhex(title), 0, 1) for title in TITLES}
        assert (names, own) == ({"factory/north"}, {""})
        assert gbek_identities(field.realm, "utility") == gbek_identities(field.realm, "factory")


def test_a_group_of_suite_2_shares_keys_of_32_octets(realm: Realm) -> None:
    deliver_meters(realm, dict.fromkeys(SERIALS, 2))
    made = [Meter(load(path), save=save_to(path)) for path in (state_path(realm, serial) for serial in SERIALS)]
    with serving(made) as ports, realm.open("factory") as party:
        with party.store.begin("moved", "meters", {}) as tx:
            for title, port in zip(TITLES, ports, strict=True):
                meters.update(tx, replace(meters.find(tx, title), address=f"127.0.0.1:{port}"))
        group_members.create(party, "north", 2)
        group_members.add(party, "north", TITLES)
        assert group_renew.renew(party, "north").switched
        broadcasts.send(party, broadcasts.protect(party, "north", message("hello")))
        wait_until(lambda: all(meter.state.message == b"hello" for meter in made))
    ((gbek, gak),) = {(meter.state.keys[KeyId.GBEK], meter.state.keys[KeyId.GAK]) for meter in made}
    assert (len(gbek), len(gak)) == (32, 32)
