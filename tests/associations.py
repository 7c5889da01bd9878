"""A model of two associations for a realm's parties, and the virtual meters that come with it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hsmkm.config import data_folder
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite, SystemTitle
from hsmkm.simulator.behaviour import MeterSettings
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import MeterState, load, save_to
from hsmkm.steps.model import import_keys
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.store import key_sets
from hsmkm.store.key_sets import KeySet, KeyState
from tests.realm import Realm, title_of

MODEL = "virtual-two-clients"
TITLE = title_of(1)
ORDER = f"flag,serial,model,suite\nMMM,1,{MODEL},0\n"
MANAGEMENT, READING = (0, 1), (1, 2)
"""Security Setup and client of the associations."""

READING_BY_SHA_256 = (
    '[associations.reading.authentication]\nmechanism = 6\n[associations.reading.protection]\nform = "ded"\n'
)


@dataclass(frozen=True)
class TwoClients:
    """A factory with one provisioned meter of two associations, and what that meter comes with."""

    realm: Realm
    state: MeterState
    package: Path
    order: Path

    @property
    def reading(self) -> MeterState:
        return self.state.associations[0]

    @contextmanager
    def meter(self, settings: MeterSettings | None = None) -> Iterator[str]:
        """Run the virtual meter and give its address."""
        with serving([Meter(self.state, settings)]) as (port,):
            yield f"127.0.0.1:{port}"


def write_model(realm: Realm, extra: str = "", *names: str) -> None:
    """Put the shipped model, with more of it, into the homes of parties."""
    for name in names or ("factory", "utility"):
        folder = realm.home(name) / "models"
        folder.mkdir(exist_ok=True)
        shutil.copy(data_folder("models") / f"{MODEL}.toml", folder)
        with (folder / f"{MODEL}.toml").open("a") as file:
            file.write(extra)


def initial_keys(party: Party, folder: Path, association: str = "", secret: str = "") -> dict[KeyId, bytes]:
    """Import random initial keys for an association."""
    keys = {key_id: secrets.token_bytes(16) for key_id in KeyId}
    path = folder / "two.keys"
    path.touch(0o600)
    path.write_text("".join(f"{key_id.name.lower()} = {value.hex()}\n" for key_id, value in keys.items()) + secret)
    import_keys(party, MODEL, 0, path, association)
    path.unlink()
    return keys


def two_clients(realm: Realm, extra: str = "", *, own_keys: bool = True) -> TwoClients:
    """Provision one meter; `own_keys` tells whether the second association comes with initial keys of its own."""
    state = comes_with(realm, extra, own_keys=own_keys)
    order = realm.folder / "two.csv"
    order.write_text(ORDER)
    with realm.open("factory") as party:
        (package,) = provision(party, order, "line").packages
    return TwoClients(realm, state, package, order)


def comes_with(realm: Realm, extra: str = "", *, own_keys: bool = True) -> MeterState:
    """Import the model's initial keys, and give what a meter of it comes with."""
    write_model(realm, extra)
    secret = secrets.token_bytes(16) if extra else b""
    line = f"hls = {secret.hex()}\n" if extra else ""
    with realm.open("factory") as party:
        first = initial_keys(party, realm.folder)
        second = initial_keys(party, realm.folder, "reading", line) if own_keys else dict(first)
    title, suite = SystemTitle.parse(TITLE), SecuritySuite.SUITE_0
    mechanisms = frozenset({Mechanism(6 if extra else 5)})
    own = MeterState(title, suite, second, version=1, mechanisms=mechanisms, secret=secret, setup=1, client=2)
    return MeterState(title, suite, first, version=1, associations=[own])


def in_force(party: Party, place: tuple[int, int]) -> KeySet:
    """Give what the store calls active in an association."""
    with party.store.read() as tx:
        found = key_sets.active(tx, bytes.fromhex(TITLE), *place)
    assert found is not None
    return found


def states(party: Party) -> dict[tuple[int, int, int], str]:
    """Give the state of each key set by Security Setup, client and generation."""
    with party.store.read() as tx:
        found = key_sets.for_meter(tx, bytes.fromhex(TITLE))
    return {
        (item.ref.security_setup, item.ref.client, item.ref.generation): KeyState(state).value for item, state in found
    }


def saved(state: MeterState, path: Path) -> MeterState:
    """Write a meter's state and read it again."""
    save_to(path)(state)
    return load(path)
