"""Third parties in a realm, and a meter that one of them reaches through the utility."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hsmkm.steps.communicate import find_meter
from hsmkm.steps.enrol import introduce
from hsmkm.steps.exporting import export
from hsmkm.steps.inject import inject
from hsmkm.steps.permit import permit
from hsmkm.steps.receive import receive_file
from hsmkm.steps.register_party import PartyPlan, register_party
from hsmkm.steps.setup import make_token, write_home
from hsmkm.store import meters
from tests.mechanisms import MODEL, TITLE, Line, set_up
from tests.realm import ACTOR, Realm, certify_home

THIRD, STRANGER = "trader", "stranger"
TITLES = {THIRD: "5452440000000007", STRANGER: "5452440000000008"}


@dataclass(frozen=True)
class Reach:
    """A meter of suite 1 or 2 in the field, the utility that has its keys, and the third party that may reach it."""

    line: Line
    address: str

    @property
    def realm(self) -> Realm:
        return self.line.realm

    def file(self, name: str) -> Path:
        return self.realm.folder / name


def make(realm: Realm, name: str) -> None:
    """Make a third party's home with certificates."""
    make_token(write_home(realm.home(name), name, "third-party", TITLES[name], ()), ACTOR)
    certify_home(realm, name)


def join(realm: Realm, name: str) -> None:
    """Register a third party at the utility, and the utility there."""
    folder = realm.folder / "certificates"
    with realm.open("utility") as party:
        register_party(party, PartyPlan(name, "third-party", (), "", "", folder / name))
    with realm.open(name) as party:
        register_party(party, PartyPlan("utility", "utility", (), "", "127.0.0.1:9", folder / "utility"))


@contextmanager
def delivered(realm: Realm, suite: int, extra: str = "", policy: int | None = None) -> Iterator[Reach]:
    """Give the utility a meter whose certificates it knows; the third party has its home, and is not registered."""
    line = set_up(realm, 5, suite, extra, policy)
    make(realm, THIRD)
    for name in ("utility", THIRD):
        (realm.home(name) / "models").mkdir()
        shutil.copy(realm.home("factory") / "models" / f"{MODEL}.toml", realm.home(name) / "models")
    with line.meter() as address:
        with realm.open("factory") as party:
            inject(party, TITLE, address)
            introduce(party, TITLE, other="utility")
            sent = export(party, "delivery", "utility", (TITLE,), None)
        with realm.open("utility") as party:
            receive_file(party, sent.path)
            with party.store.begin("meter-address", TITLE, {}) as tx:
                meters.update(tx, replace(find_meter(party, TITLE), address=address))
        yield Reach(line, address)


@contextmanager
def reached(realm: Realm, suite: int, extra: str = "", policy: int | None = None) -> Iterator[Reach]:
    """Let the third party reach the meter: introduced, permitted, and given the GAK and certificates."""
    with delivered(realm, suite, extra, policy) as reach:
        join(realm, THIRD)
        with realm.open("utility") as party:
            introduce(party, TITLE, other=THIRD)
            permit(party, TITLE, THIRD)
            sent = export(party, "distribution", THIRD, (TITLE,), None)
        with realm.open(THIRD) as party:
            receive_file(party, sent.path)
        yield reach
