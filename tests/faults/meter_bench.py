"""A factory with injected independent meters whose faults are set from outside, and the check of what the store says.

What is true is asked of the meter itself, not over DLMS. What the store calls in force is opened from a package that it
makes of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hsmkm.errors import HsmkmError, PartlyDoneError
from hsmkm.steps import renew, resolve
from hsmkm.steps.communicate import read
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.steps.results import Outcome
from hsmkm.store import counters, intents, key_sets, meters, renewals
from hsmkm.store.key_set import KeyState
from hsmkm.token.types import KeyRole, MeterRole
from tests.interop.package_opener import Keys, PackageOpener
from tests.interop.station import READING, REGISTER
from tests.peer import peer_python
from tests.realm import TITLES, Realm, build_realm, title_of

INTEROP = Path(__file__).resolve().parents[1] / "interop"
METERS = 40
ROUNDS = 8
"""Times that `resolve` is called at most; a meter that fails twice and answers in doubt each time takes five."""

ATTEMPTS_PER_DAY = 24
"""Attempts that one case may take: half of what the policy allows by default."""

LARGEST_STEP = 5_000
"""How far our counter of one key may move in one case; blocks are reserved, and the fresh key begins above the old."""


@dataclass(slots=True)
class Fleet:
    """Independent meters in a process of their own."""

    process: subprocess.Popen[str]

    def start(self, *options: str) -> int:
        return int(self._asked({"do": "start", "options": options})["port"])

    def set(self, port: int, activate: str, *, ic_reset: bool, faults: tuple[str, ...]) -> None:
        self._asked({"do": "set", "port": port, "activate": activate, "ic_reset": ic_reset, "faults": faults})

    def tell(self, port: int) -> dict[str, Any]:
        return self._asked({"do": "tell", "port": port})

    def keys(self, port: int) -> Keys:
        return {role: bytes.fromhex(value) for role, value in self.tell(port)["keys"].items()}

    def _asked(self, order: Mapping[str, object]) -> dict[str, Any]:
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer


@contextmanager
def running_fleet() -> Iterator[Fleet]:
    """Run the process of the meters; SystemExit where the peer's environment is missing."""
    python = peer_python()
    if not python.exists():
        sys.exit(f"no peer environment at {python}: scripts/setup makes it, HSMKM_INTEROP_PYTHON names another")
    command = [str(python), str(INTEROP / "gurux_meters.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield Fleet(process)
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Subject:
    """A meter that a case is tried on."""

    title: str
    port: int


@dataclass(slots=True)
class Bench:
    """The factory, its meters, and what an outsider opens its packages with."""

    realm: Realm
    party: Party
    fleet: Fleet
    opener: PackageOpener
    _unused: list[int] = field(default_factory=lambda: list(range(METERS, 0, -1)))
    _ready: Subject | None = None

    def subject(self) -> Subject:
        """Give a meter that holds what the store says, the one of the case before if that ended so."""
        if self._ready is None:
            self._ready = self._injected(self._unused.pop())
        return self._ready

    def spoil(self) -> None:
        """Use another meter from now on."""
        self._ready = None

    def _injected(self, serial: int) -> Subject:
        title = title_of(serial)
        names = {"guek": "--guek", "gbek": "--gbek", "gak": "--gak", "master": "--kek"}
        keys = self.realm.initial_keys()
        initial = [text for role, name in names.items() for text in (name, keys[role].hex())]
        port = self.fleet.start("--system-title", title, *initial)
        outcome = inject(self.party, title, f"127.0.0.1:{port}")
        assert outcome.error is None, outcome
        return Subject(title, port)

    def reached_at(self, subject: Subject, port: int) -> None:
        """Have the factory find the meter at a port."""
        with self.party.store.begin("meter-address", subject.title, {}) as tx:
            meter = meters.require(tx, bytes.fromhex(subject.title))
            meters.update(tx, replace(meter, address=f"127.0.0.1:{port}"))

    def renewed(self, subject: Subject, roles: tuple[MeterRole, ...]) -> Outcome:
        (outcome,) = renew.renew(self.party, [subject.title], roles)
        return outcome

    def resolved(self, subject: Subject, *, go_on: bool = True) -> Outcome:
        """Resolve once; what is raised is in the outcome."""
        try:
            return resolve.resolve(self.party, subject.title, go_on=go_on)
        except PartlyDoneError as error:
            return Outcome(subject.title, "unknown", 0, error.message, error)
        except HsmkmError as error:
            return Outcome(subject.title, "failed", 0, error.message, error)

    def counter(self, subject: Subject) -> int:
        """Give the next value of our counter under the GUEK in force."""
        with self.party.store.read() as tx:
            held = key_sets.active(tx, bytes.fromhex(subject.title), 0, 1)
            assert held is not None
            title = bytes.fromhex(TITLES["factory"])
            known = counters.current(tx, held.key(KeyRole.GUEK).identity, title)
        return known.next if known else 0

    def attempts(self, subject: Subject) -> int:
        """Count the attempts of all renewals of a meter."""
        with self.party.store.read() as tx:
            return sum(item.attempts for item in renewals.listing(tx, bytes.fromhex(subject.title)))

    def untrue(self, subject: Subject) -> list[str]:
        """Say what of a settled meter is not as the store says."""
        title = bytes.fromhex(subject.title)
        with self.party.store.read() as tx:
            unfinished, waiting = renewals.unfinished(tx, title), intents.unfinished(tx, title)
            states = [state for _, state in key_sets.for_meter(tx, title)]
        found = [f"renewal {item.id} is {item.state}" for item in unfinished]
        found += [f"intent {item.id} {item.action} has no outcome" for item in waiting]
        if states.count(KeyState.ACTIVE) != 1:
            return [*found, f"{states.count(KeyState.ACTIVE)} generations are active"]
        held, meant = self.fleet.keys(subject.port), self.opener.keys_in_force(self.party, subject.title)
        found += [
            f"the meter holds another {role} than the store calls active"
            for role in held
            if held[role] != meant[role] and role not in self.unproved(subject)
        ]
        return found or self._unreadable(subject)

    def unproved(self, subject: Subject) -> set[str]:
        """Name the GBEK where the meter said that it took it and did not: nothing it does depends on it."""
        return {KeyRole.GBEK.value} & set(self.fleet.tell(subject.port)["lied"])

    def _unreadable(self, subject: Subject) -> list[str]:
        try:
            (item,) = read(self.party, subject.title, (REGISTER,))
        except HsmkmError as error:
            return [f"it is not read under the keys that the store calls active: {error.message}"]
        return [] if item.data.integer() == READING else ["it reads another value"]


@contextmanager
def many_attempts() -> Iterator[None]:
    """Let a meter be tried as often as a harness needs it; each of its cases is limited instead."""
    with patch.dict(os.environ, {"HSMKM_POLICY_ATTEMPTS_PER_DAY": "100000"}):
        yield


@contextmanager
def open_bench(realm: Realm) -> Iterator[Bench]:
    """Make a realm's factory a bench."""
    opener = PackageOpener.join(realm)
    with many_attempts(), running_fleet() as fleet, realm.open("factory") as party:
        provision(party, realm.order(*range(1, METERS + 1)), "line")
        yield Bench(realm, party, fleet, opener)


@contextmanager
def realm_of_its_own() -> Iterator[Realm]:
    """Make a realm in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="hsmkm-meters-") as folder:
        yield build_realm(Path(folder) / "realm")
