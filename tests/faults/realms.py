"""The states of a realm that operations begin with: each is made once, by the operations before it, and copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite, SystemTitle
from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import MeterState, load, save_to
from hsmkm.steps.exporting import export
from hsmkm.steps.inject import inject
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_file
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.steps.setup import make_token, write_home
from tests.faults.operations import FLEET, METER, OPERATIONS
from tests.field import state_path
from tests.mechanisms import set_up
from tests.realm import ACTOR, Realm, build_realm, copy_realm, title_of
from tests.steps.test_steps_issue import write_request
from tests.tap import Tap

WAY_BACK = "[key_agreement]\nway_back = true\n"
REQUESTS = 3


@dataclass
class Realms:
    """A folder with one realm for each state; meters listen behind the tap."""

    folder: Path
    tap: Tap
    made: dict[str, Realm] = field(default_factory=dict)

    def state(self, name: str) -> Realm:
        """Make a state, and those before it, unless it is made."""
        if name not in self.made:
            self.made[name] = _MAKERS[name](self)
        return self.made[name]

    def after(self, state: str, name: str) -> Realm:
        """Take a copy of an earlier state, to make the next of it."""
        return copy_realm(self.state(state), self.folder / name)

    def copy(self, operation: str, target: Path) -> Realm:
        """Copy what a run of an operation needs."""
        wanted = OPERATIONS[operation]
        source = self.state(wanted.before).folder
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in (wanted.home, "meters", "delivered", "receipted", "asked"):
            if (source / name).is_dir():
                shutil.copytree(source / name, target / name)
        for path in source.glob("*.csv"):
            shutil.copy(path, target)
        return Realm(target)

    @contextmanager
    def meter(self, realm: Realm, serial: int = FLEET[0], settings: MeterSettings | None = None) -> Iterator[None]:
        """Have a realm's meter behind the tap."""
        path = state_path(realm, serial)
        with serving([Meter(load(path), settings, save=save_to(path))]) as (port,):
            self.tap.target = f"127.0.0.1:{port}"
            yield


def _ordered(realms: Realms) -> Realm:
    (realms.folder / "ordered").mkdir(parents=True)
    realm = build_realm(realms.folder / "ordered")
    realm.order(*FLEET)
    return realm


def _provisioned(realms: Realms) -> Realm:
    realm = realms.after("ordered", "provisioned")
    with realm.open("factory") as party:
        provision(party, realm.folder / "order.csv", "line")
    (realm.folder / "meters").mkdir()
    for serial in FLEET:
        keys = {KeyId[name.upper()]: value for name, value in realm.initial_keys().items()}
        state = MeterState(SystemTitle.parse(title_of(serial)), SecuritySuite(0), keys)
        save_to(state_path(realm, serial))(state)
    return realm


def _injected(realms: Realms) -> Realm:
    realm = realms.after("provisioned", "injected")
    for serial in FLEET:
        with realms.meter(realm, serial), realm.open("factory") as party:
            assert inject(party, title_of(serial), realms.tap.address).state == "active"
    return realm


def _exported(realms: Realms) -> Realm:
    realm = realms.after("injected", "exported")
    with realm.open("factory") as party:
        sent = export(party, "delivery", "utility", tuple(map(title_of, FLEET)), None)
    (realm.folder / "delivered").mkdir()
    shutil.copy(sent.path, realm.folder / "delivered")
    return realm


def _imported(realms: Realms) -> Realm:
    realm = realms.after("exported", "imported")
    (package,) = (realm.folder / "delivered").iterdir()
    with realm.open("utility") as party:
        receipt = receive_file(party, package).path
    (realm.folder / "receipted").mkdir()
    shutil.copy(receipt, realm.folder / "receipted")
    return realm


def _in_doubt(realms: Realms) -> Realm:
    realm = realms.after("injected", "in-doubt")
    with realms.meter(realm, settings=MeterSettings(fault=Fault.DROP_AFTER)), realm.open("factory") as party:
        (outcome,) = renew(party, [METER], GLOBAL_KEYS)
    assert outcome.state == "unknown", outcome
    return realm


def _agreeable(realms: Realms) -> Realm:
    realm = realms.after("ordered", "agreeable")
    line = set_up(realm, 5, 1, WAY_BACK)
    line.state.mechanisms |= {Mechanism.HLS_ECDSA}
    (realm.folder / "meters").mkdir()
    save_to(state_path(realm, FLEET[0]))(line.state)
    with realms.meter(realm), realm.open("factory") as party:
        assert inject(party, METER, realms.tap.address).state == "active"
    return realm


def _asked(realms: Realms) -> Realm:
    realm = realms.after("ordered", "asked")
    for serial in range(1, REQUESTS + 1):
        write_request(realm.folder / "asked", "digital-signature", title_of(serial))
    return realm


def _bare(realms: Realms) -> Realm:
    realm = Realm(realms.folder / "bare")
    settings = write_home(realm.home("newcomer"), "newcomer", "factory", "4E45570000000009", ("NEW",))
    make_token(settings, ACTOR)
    return realm


_MAKERS: dict[str, Callable[[Realms], Realm]] = {
    "ordered": _ordered,
    "provisioned": _provisioned,
    "injected": _injected,
    "exported": _exported,
    "imported": _imported,
    "in doubt": _in_doubt,
    "agreeable": _agreeable,
    "asked": _asked,
    "bare": _bare,
}
