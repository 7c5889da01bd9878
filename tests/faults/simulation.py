"""A campaign in a world that a seed makes: clock, network, token, meters and crashes are simulated, the rest is real.

What is real: the campaign with its slices and decisions (`hsmkm.campaign`), renewal and resolution with all of their
associations, the store with its anchor, leases and counters in a database file, and the protocol of the virtual meters.
The seed decides what befalls each exchange and each new key, at which steps the process dies or the token is gone, what
is renewed, and how the meters behave. A seed always gives the same run: `World.trace` is the digest of all APDUs.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self, cast
from unittest.mock import patch

from sqlalchemy import Engine, event

from hsmkm.campaign import attempt, control, fitness, plan, slices
from hsmkm.campaign.create import Asked, create
from hsmkm.campaign.plan import Finish, Rest, Stop, Wait
from hsmkm.campaign.terms import Limit, Terms
from hsmkm.config import load_model, load_settings
from hsmkm.dlms.types import KeyId, SecuritySuite, SystemTitle
from hsmkm.errors import HsmkmError, TokenUnreachableError, TransportError
from hsmkm.simulator.behaviour import DroppedError, Fault, MeterSettings
from hsmkm.simulator.fate import Chances, Mishap
from hsmkm.simulator.fleet import Device, Fleet, FleetSettings
from hsmkm.simulator.session import Session
from hsmkm.simulator.state import MeterState
from hsmkm.steps import attempts, communicate, resolve
from hsmkm.steps.party import Party
from hsmkm.steps.renew import ALL_KEYS, GLOBAL_KEYS
from hsmkm.steps.setup import write_home
from hsmkm.store import campaigns, counters, engine, guard, key_sets, meters, renewals
from hsmkm.store.campaign import CampaignState, Standing
from hsmkm.store.key_set import IDENTITY_OCTETS, KeySet, KeySetRef, KeyState, StoredKey, unpack
from hsmkm.store.meter import Meter
from hsmkm.store.store import Store
from hsmkm.token.types import KeyRole, MeterRole
from tests.faults.soft_token import IvRecord, SoftKey, SoftVault, unsealed

MOST_METERS = 2
MODELS = {"virtual": "", "by-key": '[key_transfer]\narray = false\norder = ["gak", "guek", "gbek"]\n'}
CHOICES: tuple[tuple[MeterRole, ...], ...] = ((KeyRole.GUEK,), GLOBAL_KEYS, ALL_KEYS)
BEGIN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OWN_TITLE = "5554490000000004"
FIRST = SystemTitle.from_serial("MMM", 1)
SERVER, CLIENT = 0, 1
"""A meter has one Security Setup and one client."""

CAMPAIGN = "simulated"
SESSION = cast("Any", SimpleNamespace(uri=SimpleNamespace(token=CAMPAIGN, serial="1")))
POLL = timedelta(hours=1)
"""Time is for nothing here, and each look at the campaign is a transaction."""

OPEN_ENGINE = engine.open_engine

STEPS_AT_MOST = 900
"""A crash strikes at one of so many steps; a renewal of all keys of a meter takes some 250."""

TURNS_AT_MOST = 200
"""Decisions that a campaign of two meters takes at most, most of them to wait on; more go round in circles."""


class Crash(BaseException):
    """The process is dead: nothing it does after this has an effect."""


class MemoryAnchor:
    """An anchor in the simulated token; it survives the process."""

    def __init__(self, step: Callable[[str], None]) -> None:
        self.content: tuple[bytes, ...] = ()
        self.step = step

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def read(self) -> tuple[bytes, ...]:
        return self.content

    def write(self, content: bytes) -> None:
        self.step("raise the anchor")
        self.content = (content,)


@dataclass(frozen=True)
class Template:
    """A utility's home and database with meters whose keys are in force, made once for many seeds.

    To every second meter it has spoken before; the others tell it first where its counter stands.
    """

    folder: Path
    keys: tuple[dict[KeyRole, bytes], ...]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def database(self) -> Path:
        return self.folder / "template.db"

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make it; the keys are of a seed of their own."""
        chance = random.Random(0)  # noqa: S311 - keys that protect nothing
        made = cls(folder, tuple({role: chance.randbytes(16) for role in KeyRole} for _ in range(MOST_METERS * 2)))
        write_home(made.home, "utility", "utility", OWN_TITLE, ())
        (made.home / "models").mkdir()
        for name, text in MODELS.items():
            (made.home / "models" / f"{name}.toml").write_text(f'flags = ["MMM"]\nsuites = [0]\n{text}')
        Store.create(f"sqlite:{made.database}")
        made._fill(SoftVault(chance, IvRecord(), _nothing))
        return made

    def _fill(self, vault: SoftVault) -> None:
        with (
            Store.open(f"sqlite:{self.database}", vault, "simulation", anchor=MemoryAnchor(_nothing)) as store,
            store.begin("fill", "template", {}) as tx,
        ):
            for number, keys in enumerate(self.keys, 1):
                model = list(MODELS)[number > MOST_METERS]
                title = title_of(number)
                meter = Meter(title, str(number), model, 0)
                meters.add_many(tx, [meter])
                stored = [
                    StoredKey(role, vault.random(IDENTITY_OCTETS), vault.seal(SoftKey(role, value)).wrapped)
                    for role, value in keys.items()
                ]
                ref = KeySetRef(title, SERVER, CLIENT, 1)
                key_sets.add(tx, key_sets.authenticate(vault, KeySet(ref, 0, 1, KeyState.ACTIVE, tuple(stored)), meter))
                meters.update(tx, replace(meter, address=f"meter:{number}"))
                if number % 2:
                    (guek,) = (key for key in stored if key.role is KeyRole.GUEK)
                    counters.reserve(tx, guek.identity, bytes.fromhex(OWN_TITLE), 1, None)


def _nothing(_what: str) -> None:
    """Let nothing happen at a step."""


def title_of(number: int) -> bytes:
    """The system title of a simulated meter, by its number from 1."""
    return SystemTitle.from_serial("MMM", number).octets


class SimulatedLink:
    """One connection to one simulated meter; fulfils `hsmkm.link.tcp.ApduLink`."""

    client = CLIENT

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._device: Device | None = None
        self._session: Session | None = None

    @property
    def is_open(self) -> bool:
        return self._session is not None and self._session.is_open

    def __enter__(self) -> Self:
        self._world.step("connect")
        self._device = self._world.fleet.enter(self._number, self)
        self._session = Session(self._device.meter)
        return self

    def __exit__(self, *_error: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connection, which releases the association."""
        if self._session is not None:
            self._session.close()
        self.cut()

    def cut(self) -> None:
        self._session = None
        device, self._device = self._device, None
        if device is not None:
            self._world.fleet.leave(device, self)

    def send(self, apdu: bytes, client_sap: int, server_sap: int) -> None:
        raise NotImplementedError

    def exchange(self, apdu: bytes, client_sap: int, _server_sap: int) -> bytes:
        world, device, session = self._world, self._device, self._session
        world.step("a request leaves")
        if device is None or session is None:
            raise TransportError("the connection is closed")
        answer = self._answer(device, session, apdu, client_sap)
        world.step("an answer comes")
        return answer

    def _answer(self, device: Device, session: Session, apdu: bytes, client_sap: int) -> bytes:
        world = self._world
        world.traced(apdu)
        fate = world.fleet.fate(self._number)
        world.now += timedelta(seconds=fate.delay)
        if fate.mishap is Mishap.REBOOT:
            world.fleet.reboot(device)
        elif fate.mishap is not Mishap.REQUEST_LOST:
            try:
                answer = session.receive(apdu, client_sap)
                world.check_durable(device, session)
                session.sent()
                if fate.mishap is None and answer:
                    world.traced(answer)
                    return answer
            except DroppedError:
                world.check_durable(device, session)
        self.hang_up()
        raise TransportError("no answer")


class World:
    """One seed: what it decides, what happens, and what was violated."""

    current: ClassVar[World]

    def __init__(self, template: Template, folder: Path, seed: int) -> None:
        self.seed = seed
        self._chance = random.Random(seed)  # noqa: S311 - a simulation that can be replayed
        self._template = template
        self._path = folder / "world.db"
        self._file = folder / "meters.txt"
        self.now = BEGIN
        self.violations: list[str] = []
        self.record = IvRecord()
        self._digest = hashlib.sha256()
        self._known: set[bytes] = set()
        self._steps = 0
        self._dead = False
        self._process = 0
        self.befell: Counter[str] = Counter()
        self._decide()

    def _decide(self) -> None:
        chance = self._chance
        self.numbers = chance.sample(range(1, 2 * MOST_METERS + 1), chance.randint(1, MOST_METERS))
        self.roles = chance.choice(CHOICES)
        self.crashes = {chance.randrange(STEPS_AT_MOST) for _ in range(chance.choice((0, 1, 1, 2, 3)))}
        self.failures = {chance.randrange(STEPS_AT_MOST) for _ in range(chance.choice((0, 0, 1)))}
        strength = chance.choice((0.0, 0.02, 0.1, 0.3))
        chances = Chances(strength / 2, strength / 4, strength / 4, chance.choice((0.0, 0.3, 0.7)), (0.0, 3.0))
        behaviour = MeterSettings(challenge=chance.randbytes, now=lambda: self.now)
        settings = FleetSettings(2 * MOST_METERS, self.seed, chances, behaviour, mixed=True)
        self.fleet = Fleet(MeterState(FIRST, SecuritySuite.SUITE_0, dict.fromkeys(KeyId, bytes(16))), settings)
        self.fleet.take_up(_state(number, keys) for number, keys in enumerate(self._template.keys, 1))
        self.terms = Terms(
            roles=self.roles,
            attempts=chance.randint(1, 4),
            back_off=timedelta(minutes=chance.choice((0, 5, 60))),
            stop=chance.choice((None, Limit(meters=2))),
            rate=chance.choice((None, 0.1)),
            slice=chance.randint(1, 2),
        ).checked()
        self.standing: dict[str, Standing] = {}

    @property
    def trace(self) -> str:
        """The digest of every APDU of this world so far."""
        return self._digest.hexdigest()

    def traced(self, apdu: bytes) -> None:
        """Take note of an APDU."""
        self._digest.update(len(apdu).to_bytes(4, "big") + apdu)

    def step(self, what: str) -> None:
        """Let time pass, and strike where the seed says so."""
        if self._dead:
            raise Crash
        self._steps += 1
        self.now += timedelta(milliseconds=20)
        if self._steps in self.crashes:
            self._dead = True
            self.befell["crash"] += 1
            raise Crash(what)
        if self._steps in self.failures and what in ("generate", "seal", "open", "wrap", "protect", "unprotect"):
            self.befell["token gone"] += 1
            raise TokenUnreachableError("the token is gone")

    def check_durable(self, device: Device, session: Session) -> None:
        """Promise 2: what the meter holds or is about to hold lies in the store, and in no open transaction of it."""
        title = device.meter.state.system_title.octets
        held = {*device.meter.state.keys.values(), *session._services.pending.values()} - self._known
        if held:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as durable:
                rows = durable.execute("SELECT keys FROM key_sets WHERE system_title = ?", (title,)).fetchall()
            self._known |= {unsealed(key.wrapped) for (packed,) in rows for key in unpack(packed, "key_sets")}
            if lost := held - self._known:
                self.violations.append(f"meter {title.hex().upper()} has {len(lost)} keys that are not durable")

    def run(self) -> list[str]:
        """Run the campaign to its end, mend the world, finish what is open, and say what was violated."""
        anchor, World.current = MemoryAnchor(self.step), self
        shutil.copyfile(self._template.database, self._path)
        self._file.write_text("".join(f"{title_of(number).hex()}\n" for number in self.numbers))
        try:
            with self._laws():
                self._until_done(anchor, self._campaign)
                self._mend()
                self._until_done(anchor, self._settle)
        finally:
            for path in self._path.parent.glob(f"{self._path.name}-*"):
                path.unlink()
        return [f"seed {self.seed}: {text}" for text in self.violations + self.record.twice]

    @contextmanager
    def _laws(self) -> Iterator[None]:
        """Put clock, network, randomness and processes of this world in place of the real ones."""

        def dial(_party: Party, meter: Meter) -> Any:  # noqa: ANN401 - a Dial
            number = int((meter.address or "").partition(":")[2])
            return lambda: SimulatedLink(self, number)

        def clock() -> datetime:
            return self.now.replace(microsecond=0)

        laws: tuple[tuple[object, str, object], ...] = (
            (communicate, "dial", dial),
            (communicate, "utc_now", clock),
            (attempts, "utc_now", clock),
            (communicate, "secrets", SimpleNamespace(token_bytes=self._chance.randbytes)),
            (engine, "open_engine", _open_engine),
            (guard, "ROWS_AT_OPENING", 0),
            (slices, "time", SimpleNamespace(monotonic=self._seconds, sleep=self._sleep)),
            (plan, "POLL", POLL),
        )
        own: tuple[tuple[str, object], ...] = (
            ("load_model", _model),
            ("this_process", lambda: f"process {self._process}"),
            ("is_gone", lambda holder: holder != f"process {self._process}"),
        )
        with ExitStack() as stack:
            for owner, name, law in laws:
                stack.enter_context(patch.object(owner, name, law))
            for (name, law), module in product(own, (communicate, resolve, attempt, fitness, slices)):
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, law))
            yield

    def _seconds(self) -> float:
        return self.now.timestamp()

    def _sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @contextmanager
    def _party(self, anchor: MemoryAnchor) -> Iterator[Party]:
        vault = SoftVault(self._chance, self.record, self.step)
        with Store.open(f"sqlite:{self._path}", vault, "simulation", lambda: self.now, anchor) as store:
            settings = _settings(self._template.home)
            yield Party(settings, SESSION, cast("Any", vault), store, "simulation", cast("Any", None))

    def _until_done(self, anchor: MemoryAnchor, work: Callable[[Party], None]) -> None:
        """Do a piece of work in one process after the other, until one of them lives to its end."""
        for _ in range(len(self.crashes) + len(self.failures) + 1):
            self._process += 1
            try:
                with self._party(anchor) as party:
                    return work(party)
            except (Crash, TokenUnreachableError):
                self._dead = False
                for device in tuple(self.fleet._active.values()):
                    for link in tuple(device.lines):
                        cast("SimulatedLink", link).hang_up()
        self.violations.append("it did not end")
        return None

    def _campaign(self, party: Party) -> None:
        """Be a worker: make the campaign unless it is there, and take slices until it is at its end."""
        with party.store.read() as tx:
            states = [campaign.state for campaign in campaigns.listing(tx)]
        if not states:
            create(party, Asked(CAMPAIGN, self.terms, file=self._file), "file")
        if states in ([], [CampaignState.CREATED]):
            control.start(party, CAMPAIGN)
        for _ in range(TURNS_AT_MOST):
            for item in slices.work(party, CAMPAIGN):
                if isinstance(item, Wait):
                    self.now = max(self.now, item.until)
                elif isinstance(item, Finish | Stop | Rest):
                    return
        self.violations.append("the campaign went round in circles")

    def _mend(self) -> None:
        """Let nothing go wrong any more, and so much time pass that a meter may be tried again."""
        settings = self.fleet.settings
        self.befell.update({what: n for what, n in self.fleet.tally.totals.items() if what in (*Mishap, *Fault)})
        self._liars = {number for number, mine in self.fleet.tally.by_meter.items() if {*mine} & {"lie", "first-only"}}
        mended = Fleet(self.fleet.first, replace(settings, chances=Chances()))
        mended.take_up(self.fleet.states())
        self.fleet = mended
        self.now += timedelta(days=2)

    def _settle(self, party: Party) -> None:
        """Resolve what is open, as a person would once everything works again."""
        for number in self.numbers:
            title = title_of(number).hex().upper()
            for outcome in resolve.resolve_all(party, title):
                if outcome.error is not None:
                    self.violations.append(f"meter {title} cannot be resolved: {outcome.detail}")
        self.crashes, self.failures = set(), set()
        self._compare(party)

    def _compare(self, party: Party) -> None:
        """What the store calls in force is what the meter has, so far as it can be proved of a meter that lied.

        A meter of the campaign is done, with keys that are others than before, or it is listed.
        """
        with party.store.read() as tx:
            campaign = campaigns.find(tx, CAMPAIGN).id
            self.standing = {meter.title: meter.state for meter in campaigns.not_done(tx, campaign)}
            if campaigns.counts(tx, campaign)[Standing.DONE] + len(self.standing) != len(self.numbers):
                self.violations.append("a meter is neither done nor listed")
            if Standing.CLAIMED in self.standing.values():
                self.violations.append("a meter is still claimed")
        for number in self.numbers:
            title = title_of(number)
            with party.store.read() as tx:
                states = [state for _, state in key_sets.for_meter(tx, title)]
                active = key_sets.active(tx, title, SERVER, CLIENT)
                left = renewals.unfinished(tx, title)
            if left or active is None or states.count(KeyState.ACTIVE) != 1:
                self.violations.append(f"meter {title.hex().upper()} ends with {len(left)} open and {states}")
                continue
            if title.hex().upper() not in self.standing and active.ref.generation == 1:
                self.violations.append(f"meter {title.hex().upper()} is done, and its keys are those of before")
            held = self.fleet.keys(number)
            proved = (KeyRole.GUEK, KeyRole.GAK) + ((KeyRole.MASTER,) if number not in self._liars else ())
            for role in proved:
                if unsealed(active.key(role).wrapped) != held[KeyId[role.name]]:
                    self.violations.append(
                        f"meter {title.hex().upper()} has another {role} than the store calls active"
                    )


def _state(number: int, keys: dict[KeyRole, bytes]) -> str:
    named = {role.value: value.hex() for role, value in keys.items()}
    return json.dumps([str(SystemTitle.from_serial("MMM", number)), 0, 0, "", {"keys": named}])


@cache
def _open_engine(url: str) -> Engine:
    """Open the database of all worlds of this process, one after the other, whose steps it counts.

    To make an engine, and to compile each statement anew, would be half of the time. It is in one file, whose content
    is that of the next world then: an engine whose file is another one is a store that is gone.
    """
    made = OPEN_ENGINE(url)
    for moment in ("begin", "commit"):
        event.listen(made, moment, lambda _connection: World.current.step("the database"))
    return made


@cache
def _settings(home: Path) -> Any:  # noqa: ANN401 - Settings
    return load_settings(home)


@cache
def _model(name: str, home: Path) -> Any:  # noqa: ANN401 - MeterModel
    return load_model(name, home)


def runs_on(template: Template, folder: Path, seed: int) -> World:
    """Run a seed; a defect of the program counts as a violation."""
    world = World(template, folder, seed)
    try:
        world.violations = world.run()
    except HsmkmError as error:
        world.violations = [f"seed {seed}: {type(error).__name__}: {error.message}"]
    return world
