"""Operations of the parties as a fault harness repeats them: each from the same beginning, in a home of its own.

`Theatre` makes the beginnings once; `Theatre.stage` copies one. What an operation must have brought about, once it has
been given again after a fault, `Operation.wrongs` tells; every party's store and audit log are checked as well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsmkm.dlms.types import KeyId
from hsmkm.errors import TokenUnreachableError
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import load, save_to
from hsmkm.steps import certify
from hsmkm.steps.attest import check_store, verify_audit
from hsmkm.steps.communicate import read
from hsmkm.steps.exporting import export
from hsmkm.steps.inject import inject
from hsmkm.steps.issue import issue
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_file
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.steps.resolve import resolve_all, unfinished
from hsmkm.steps.setup import make_token, write_home
from hsmkm.store import key_sets, packages
from hsmkm.store.key_set import KeySet
from hsmkm.token.session import SOFTHSM
from hsmkm.token.types import KeyRole, Sealed, Use
from tests.faults.shim import Plan, Shim
from tests.field import ENERGY, with_initial_keys
from tests.realm import ACTOR, build_realm, title_of

IN_METER, ORDERED = 1, 2
READING = 123_456
TITLE = title_of(IN_METER)
EXTRA = "434F4E0000000007"


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of an operation: a copy of the party's home and of the meter, and the realm's files to read."""

    folder: Path
    home: Path
    meter: Path
    realm: Path
    port: int

    @property
    def keys(self) -> dict[KeyId, bytes]:
        """The keys that the meter holds."""
        return load(self.meter).keys

    def moved(self) -> Stage:
        """Give the same home another path: nothing that this process remembers of it holds any more."""
        home = self.home.with_name(f"{self.home.name}-again")
        self.home.rename(home)
        return Stage(self.folder, home, self.meter, self.realm, self.port)

    @contextmanager
    def meter_served(self) -> Iterator[None]:
        """Let the meter be where the party knows it to be."""
        with serving([Meter(load(self.meter), save=save_to(self.meter))], port=self.port):
            yield


@dataclass(frozen=True, slots=True)
class Operation:
    """What a party does: its work, the same work after a fault, and what is wrong with what it left."""

    name: str
    party: str
    beginning: str
    work: Callable[[Party, Stage], object]
    again: Callable[[Party, Stage], object]
    wrongs: Callable[[Party, Stage], list[str]]


def _provision(party: Party, stage: Stage) -> object:
    return provision(party, stage.realm / "ordered.csv", "line")


def _export(party: Party, _stage: Stage) -> object:
    return export(party, "delivery", "utility", (TITLE,), None)


def _import(party: Party, stage: Stage) -> object:
    return receive_file(party, stage.realm / "delivery.p7m")


def _read(party: Party, _stage: Stage) -> object:
    (found,) = read(party, TITLE, (ENERGY,))
    if found.data.value != READING:
        raise ValueError(f"the meter says {found.data.value!r}")
    return found


def _renew(party: Party, _stage: Stage) -> object:
    return renew(party, [TITLE], GLOBAL_KEYS)


def _resolve(party: Party, _stage: Stage) -> object:
    return [resolve_all(party, name) for name in unfinished(party)]


def _finish(party: Party, stage: Stage) -> object:
    """Go on as an operator does: what is unfinished is resolved, and the meter read."""
    _resolve(party, stage)
    return _read(party, stage)


def _issue(party: Party, stage: Stage) -> object:
    return issue(party, stage.realm / "requests" / "extra", stage.folder / "issued")


def _key_set(party: Party, serial: int) -> KeySet | None:
    with party.store.read() as tx:
        return key_sets.newest(tx, bytes.fromhex(title_of(serial)), 0, 1)


def _opened(party: Party, serial: int) -> list[str]:
    """Open the newest key set of a meter for work."""
    found = _key_set(party, serial)
    if found is None or found.ref.generation != 1:
        return [f"the key set of meter {serial} is {found}"]
    for key in found.keys:
        party.vault.open(key.role, Sealed(found.storage_key, key.wrapped), found.suite, Use.IN_USE).destroy()
    return []


def _provisioned(party: Party, _stage: Stage) -> list[str]:
    return _opened(party, ORDERED) + _files(party)


def _files(party: Party) -> list[str]:
    """Look for the file of every package that the store says was sent."""
    with party.store.read() as tx:
        sent = [record for record in packages.listing(tx) if record.direction is packages.Direction.SENT]
    paths = {record: party.home / "packages" / f"{record.id}.p7m" for record in sent}
    return [
        f"the file of package {record.id} is not what was recorded"
        for record, path in paths.items()
        if not path.is_file() or sha256(path.read_bytes()).digest() != record.sha256
    ]


def _exported(party: Party, _stage: Stage) -> list[str]:
    return _files(party)


def holds_the_keys_of(party: Party, stage: Stage) -> list[str]:
    """Compare the keys that the store calls active with those in the meter: what both protect must be the same."""
    with party.store.read() as tx:
        found = key_sets.active(tx, bytes.fromhex(TITLE), 0, 1)
    if found is None:
        return ["no key set is active"]
    sealed = {key.role: Sealed(found.storage_key, key.wrapped) for key in found.keys}
    iv, plain = bytes(12), b"which keys are these"
    with (
        party.vault.open(KeyRole.GUEK, sealed[KeyRole.GUEK], found.suite, Use.IN_USE) as guek,
        party.vault.open(KeyRole.GAK, sealed[KeyRole.GAK], found.suite, Use.IN_USE) as gak,
        party.vault.cipher(guek, gak) as cipher,
    ):
        ours = cipher.protect(iv, 0x30, b"", plain)
    keys = stage.keys
    theirs = AESGCM(keys[KeyId.GUEK]).encrypt(iv, plain, b"\x30" + keys[KeyId.GAK])[:-4]
    return [] if ours == theirs else ["the keys called active are not those in the meter"]


def _issued(_party: Party, stage: Stage) -> list[str]:
    asked = {path.stem for path in (stage.realm / "requests" / "extra").iterdir()}
    made = {path.stem for path in (stage.folder / "issued").iterdir()}
    return [] if made == asked else [f"certificates for {sorted(made)} instead of {sorted(asked)}"]


OPERATIONS = (
    Operation("provision", "factory", "factory", _provision, _provision, _provisioned),
    Operation("package export", "factory", "factory", _export, _export, _exported),
    Operation("package import", "utility", "utility", _import, _import, holds_the_keys_of),
    Operation("read", "factory", "factory", _read, _read, holds_the_keys_of),
    Operation("renew", "factory", "factory", _renew, _finish, holds_the_keys_of),
    Operation("resolve", "factory", "unfinished", _resolve, _finish, holds_the_keys_of),
    Operation("certificate issue", "authority", "authority", _issue, _issue, _issued),
)


def checked(party: Party) -> list[str]:
    """Check the store and the audit log of a party."""
    return [str(problem) for problem in (*check_store(party), *verify_audit(party, ()))]


class Theatre:
    """The beginnings of all operations, in a folder; the meter is served on this port whenever it is."""

    def __init__(self, folder: Path, shim: Shim, port: int) -> None:
        self.folder = folder
        self.shim = shim
        self.realm = build_realm(folder / "realm")
        self.port = port
        self._stages = count(1)
        self.meter = self.realm.folder / "meter.json"
        self._make()

    def _make(self) -> None:
        """Take a meter through steps 1 to 3, ask for certificates, and leave a renewal in the middle."""
        realm = self.realm
        save_to(self.meter)(with_initial_keys(realm, IN_METER, 0))
        first, _ = realm.order(IN_METER), realm.order(ORDERED, name="ordered.csv")
        meter = Meter(load(self.meter), save=save_to(self.meter))
        with serving([meter], port=self.port), realm.open("factory") as party:
            provision(party, first, "line")
            inject(party, TITLE, f"127.0.0.1:{self.port}")
            shutil.copy(export(party, "delivery", "utility", (TITLE,), None).path, realm.folder / "delivery.p7m")
        extra = write_home(realm.home("extra"), "extra", "concentrator", EXTRA, (), SOFTHSM)
        make_token(extra, ACTOR)
        with realm.open("extra") as party:
            certify.request(party, ("127.0.0.1",), realm.folder / "requests" / "extra")
        self._leave_unfinished()

    def _leave_unfinished(self) -> None:
        """Break a renewal when the meter holds the new keys and nothing proved them yet."""
        shutil.copytree(self.realm.home("factory"), self.realm.home("unfinished"))
        meter = self.realm.folder / "unfinished.json"
        shutil.copy(self.meter, meter)
        before = load(meter).keys
        with serving([Meter(load(meter), save=save_to(meter))], port=self.port):
            for nth in count(2):
                with open_party(self.realm.home("unfinished"), ACTOR) as party:
                    self.shim.arm(Plan("C_DecryptInit", nth, "fail", 0x30))
                    try:
                        renew(party, [TITLE], GLOBAL_KEYS)
                    except TokenUnreachableError:
                        if load(meter).keys != before:
                            return
                        resolve_all(party, TITLE)
                    finally:
                        self.shim.disarm()

    def stage(self, operation: Operation) -> Stage:
        """Copy what an operation begins with."""
        folder = self.folder / f"stage-{next(self._stages)}"
        home, meter = folder / operation.party, folder / "meter.json"
        shutil.copytree(self.realm.home(operation.beginning), home)
        unfinished_one = operation.beginning == "unfinished"
        shutil.copy(self.realm.folder / "unfinished.json" if unfinished_one else self.meter, meter)
        return Stage(folder, home, meter, self.realm.folder, self.port)

    def calls(self, operation: Operation) -> list[str]:
        """Name every call of the token that an operation makes, in order."""
        stage = self.stage(operation)
        record = stage.folder / "record"
        with stage.meter_served(), self.shim.recording(record), open_party(stage.home, ACTOR) as party:
            operation.work(party, stage)
        with record.open() as lines:
            made = [str(json.loads(line)["call"]) for line in lines]
        self.strike(stage)
        return made

    def strike(self, stage: Stage) -> None:
        """Clear a stage away."""
        shutil.rmtree(stage.folder)
