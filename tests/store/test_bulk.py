from __future__ import annotations

from typing import TYPE_CHECKING

from hsmkm.store import key_sets, meters
from hsmkm.store.store import Store
from tests.database import path_of

if TYPE_CHECKING:
    from tests.store.conftest import Factory, SoftwareAuthenticator

METERS = 20_000
BATCH = 5_000
OCTETS = 350


def test_a_meter_and_its_key_set_take_no_more_than_350_octets(
    factory: Factory, file_url: str, authenticator: SoftwareAuthenticator
) -> None:
    path, store = path_of(file_url), Store.open(file_url, authenticator, "tester")
    empty = path.stat().st_size
    for start in range(1, METERS, BATCH):
        batch = [factory.meter(number) for number in range(start, start + BATCH)]
        sets = [key_sets.authenticate(factory.authenticator, factory.key_set(meter), meter) for meter in batch]
        with store.begin("meter provision", "bulk", {}) as tx:
            assert meters.add_many(tx, batch) == BATCH
            assert key_sets.add_many(tx, sets) == BATCH
    store.close()
    assert (path.stat().st_size - empty) / METERS <= OCTETS
