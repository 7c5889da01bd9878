"""A third party reads a meter through the AIM's service, with the real processes between them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hsmkm.dlms.types import AttributeRef, LogicalName
from hsmkm.errors import PolicyError, RefusedError, TransportError
from hsmkm.simulator.meter import LONG_VALUE
from hsmkm.steps.permit import permit, withdraw
from hsmkm.steps.register_party import PartyPlan, register_party
from hsmkm.steps.results import Wanted
from hsmkm.steps.third_party import protect, read_through
from tests.field import ENERGY, Field, open_field
from tests.mechanisms import TITLE
from tests.realm import Realm, copy_realm
from tests.third import STRANGER, THIRD, Reach, join, make, reached

pytestmark = pytest.mark.slow

PLAIN = (123_456).to_bytes(4, "big")


@pytest.fixture(scope="module")
def live(realm_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reach, Field]]:
    realm = copy_realm(realm_template, tmp_path_factory.mktemp("carried") / "realm")
    with reached(realm, 1) as reach, open_field(realm) as field:
        field.serve()
        find_service(realm, THIRD, field)
        yield reach, field


def find_service(realm: Realm, name: str, field: Field) -> None:
    folder = realm.folder / "certificates" / "utility"
    plan = PartyPlan("utility", "utility", (), "", f"127.0.0.1:{field.ports['utility']}", folder, replace=True)
    with realm.open(name) as party:
        register_party(party, plan)


def through(reach: Reach, *wanted: Wanted) -> list[object]:
    with reach.realm.open(THIRD) as party:
        return [item.data.value for item in read_through(party, TITLE, wanted, "utility")]


def test_values_are_read_one_after_another(live: tuple[Reach, Field]) -> None:
    reach, _ = live
    wanted = (Wanted(ENERGY), Wanted(ENERGY, "static"), Wanted(ENERGY, signed=True))
    assert through(reach, *wanted) == [123_456] * 3


def test_a_value_in_blocks_is_told_as_such(live: tuple[Reach, Field]) -> None:
    with pytest.raises(RefusedError, match="longer than one APDU"):
        through(live[0], Wanted(LONG_VALUE))


def test_what_the_meter_refuses_is_told(live: tuple[Reach, Field]) -> None:
    with pytest.raises(RefusedError, match="the meter refused"):
        through(live[0], Wanted(AttributeRef(3, LogicalName.parse("1.0.99.99.0.255"), 2)))


def test_a_permission_counts_for_each_apdu(live: tuple[Reach, Field]) -> None:
    reach, _ = live
    with reach.realm.open("utility") as party:
        withdraw(party, TITLE, THIRD)
    with pytest.raises(PolicyError) as refused:
        through(reach, Wanted(ENERGY))
    assert "may not reach" in refused.value.hint
    with reach.realm.open("utility") as party:
        permit(party, TITLE, THIRD)
    assert through(reach, Wanted(ENERGY)) == [123_456]


def test_a_party_brings_only_what_is_its_own(live: tuple[Reach, Field]) -> None:
    """An APDU of the permitted party, taken on its way and brought by another registered one."""
    reach, field = live
    realm, path = reach.realm, reach.file("taken.apdu")
    with realm.open(THIRD) as party:
        protect(party, TITLE, Wanted(ENERGY), path)
    make(realm, STRANGER)
    join(realm, STRANGER)
    for name, status in ((STRANGER, 403), ("concentrator", 403), (THIRD, 200)):
        answered, content = field.ask(realm.home(name), f"/v1/meters/{TITLE}/apdu", path.read_bytes())
        assert answered == status, content
    assert PLAIN not in content


def test_a_service_that_is_gone_is_told(live: tuple[Reach, Field]) -> None:
    reach, field = live
    with reach.realm.open(THIRD) as party:
        folder = reach.realm.folder / "certificates" / "utility"
        register_party(party, PartyPlan("utility", "utility", (), "", "127.0.0.1:9", folder, replace=True))
    with pytest.raises(TransportError):
        through(reach, Wanted(ENERGY))
    find_service(reach.realm, THIRD, field)
