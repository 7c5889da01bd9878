"""What an earlier version left behind is a home for today's: nothing is lost, and the seven steps go on from it.

The clock stands at the day of the fixture, since its certificates and revocation lists are of then.
"""

from __future__ import annotations

import importlib
import pkgutil
import sqlite3
import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

import hsmkm.steps
from hsmkm.config import load_settings
from hsmkm.errors import IntegrityError
from hsmkm.steps import attest
from hsmkm.steps import party as parties
from hsmkm.steps.deliver import accept_receipt
from hsmkm.steps.exporting import export
from hsmkm.steps.party import Party
from hsmkm.steps.receive import receive_file
from hsmkm.store import key_sets, meters
from hsmkm.store import store as stores
from hsmkm.token.types import Sealed, Use
from tests.homes.homes import CHECKPOINT, DELIVERED, MADE, NAMES, UNDELIVERED, unpack
from tests.realm import ACTOR, Realm, title_of

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.tar.xz"))
KEYS_OF_A_METER = 4


@pytest.fixture(params=FIXTURES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def earlier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Realm:
    """The homes of an earlier version, their stores upgraded as `hsmkm store upgrade` does it."""
    realm = unpack(request.param, tmp_path / "realm")
    stand_still(monkeypatch, datetime.fromisoformat((realm.folder / MADE).read_text().strip()))
    for name in NAMES:
        attest.upgrade_store(load_settings(realm.home(name)), ACTOR)
    return realm


def stand_still(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Stop the clock of the store and of every step; each is loaded before, so that none keeps this one for good."""
    for found in pkgutil.iter_modules(hsmkm.steps.__path__, "hsmkm.steps."):
        importlib.import_module(found.name)
    clock = parties.utc_now
    for module in list(sys.modules.values()):
        if getattr(module, "utc_now", None) is clock:
            monkeypatch.setattr(module, "utc_now", lambda: moment)
    monkeypatch.setattr(stores, "_utc_now", lambda: moment)


def opened(party: Party) -> dict[str, int]:
    """Open every key in the token, and say by meter how many there are; what does not open raises."""
    with party.store.read() as tx:
        every = {meter.title: key_sets.for_meter(tx, meter.system_title) for meter in meters.listing(tx)}
    for held in every.values():
        for one, _ in held:
            for key in one.keys:
                party.vault.open(key.role, Sealed(one.storage_key, key.wrapped), one.suite, Use.TRANSPORT).destroy()
    return {title: sum(len(one.keys) for one, _ in held) for title, held in every.items()}


def test_there_is_a_home_of_some_version() -> None:
    assert FIXTURES


def test_stores_and_audit_logs_are_as_they_were_written(earlier: Realm) -> None:
    for name in NAMES:
        home = earlier.home(name)
        with earlier.open(name) as party:
            assert attest.check_store(party) == []
            assert attest.verify_audit(party, tuple(home.glob(CHECKPOINT))) == []


def test_every_key_opens(earlier: Realm) -> None:
    delivered = {title_of(serial): KEYS_OF_A_METER for serial in DELIVERED}
    with earlier.open("utility") as party:
        assert opened(party) == delivered
    with earlier.open("factory") as party:
        found = opened(party)
    assert found.keys() == {title_of(serial) for serial in (*DELIVERED, *UNDELIVERED)}
    assert min(found.values()) >= KEYS_OF_A_METER


def test_what_the_factory_still_has_goes_to_the_utility(earlier: Realm) -> None:
    titles = tuple(map(title_of, UNDELIVERED))
    with earlier.open("factory") as party:
        sent = export(party, "delivery", "utility", titles, None)
    with earlier.open("utility") as party:
        taken = receive_file(party, sent.path)
        assert opened(party) == {title_of(serial): KEYS_OF_A_METER for serial in (*DELIVERED, *UNDELIVERED)}
    with earlier.open("factory") as party:
        accept_receipt(party, taken.receipt)
        assert attest.check_store(party) == []


def test_one_octet_that_was_altered_since_is_named(earlier: Realm) -> None:
    title = title_of(next(iter(DELIVERED)))
    with closing(sqlite3.connect(earlier.home("utility") / "store.db")) as connection, connection:
        place = (bytes.fromhex(title),)
        ((keys,),) = connection.execute("SELECT keys FROM key_sets WHERE system_title = ?", place)
        altered = keys[:-1] + bytes([keys[-1] ^ 1])
        connection.execute("UPDATE key_sets SET keys = ? WHERE system_title = ?", (altered, *place))
    with earlier.open("utility") as party:
        (problem,) = attest.check_store(party)
        assert title in str(problem)
        with pytest.raises(IntegrityError):
            opened(party)


def test_a_package_that_was_taken_is_receipted_again(earlier: Realm) -> None:
    (receipt,) = (earlier.home("utility") / "receipts").iterdir()
    package = earlier.home("factory") / "packages" / receipt.name
    before = receipt.read_bytes()
    with earlier.open("utility") as party:
        taken = receive_file(party, package)
    assert taken.receipt == before
