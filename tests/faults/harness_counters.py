"""No (key, IV) pair twice, whoever is killed when: two workers and the service speak to one meter and die at random.

The workers read and renew; the service carries a third party's APDUs inside associations of its own. All three use one
key and one counter of one database. A relay before the meter keeps what is sent, and who reads it knows every key that
the meter ever held.
"""

from __future__ import annotations

import http.client
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

from hsmkm.dlms.types import KeyId
from hsmkm.link.tls import client_context
from hsmkm.steps.results import Wanted
from hsmkm.steps.third_party import protect
from tests.faults import wire
from tests.faults.operations import Place
from tests.faults.report import Report
from tests.faults.stage import Request, Stage
from tests.field import ENERGY, Field, Running, ask, open_field
from tests.mechanisms import TITLE, moved
from tests.realm import TITLES, Realm, build_realm
from tests.tap import Tap, tapping
from tests.third import THIRD, reached

KILLS, CONTROL_KILLS = 1000, 12
WORKERS, SERVICE_TURNS = 2, 12
"""Of so many kills of workers, the service or its worker is killed once."""

MOST_OCTETS, MOST_SECONDS, PATIENCE = 3000, 0.02, 5.0
"""A worker is killed after so many octets more at most to and from the meter, whoever sent them, and so many seconds;
or when nothing comes for so long. An association with a reading takes some 800 octets."""

BROKEN = "counters without commit"


@dataclass
class Scene:
    """The utility with its processes, the meter behind a tap, and the keys that the meter held."""

    realm: Realm
    live: Field
    tap: Tap
    held: Callable[[], set[bytes]]
    apdu: bytes
    chance: random.Random
    keys: set[bytes] = field(default_factory=set)
    kills: int = 0
    carried: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def killed(self) -> int:
        """Count a kill; how many there were before it."""
        with self.lock:
            self.keys |= self.held()
            self.kills += 1
            return self.kills - 1

    def work_and_die(self, kills: int, broken: str) -> None:
        """Be a worker that is killed at a random moment, and the next, until there were enough kills."""
        with Stage() as stage:
            while self.kills < kills:
                process = stage.begin(Request("act", "talk", Place(str(self.realm.folder)), broken=broken))
                self._await_a_moment()
                os.kill(process, SIGKILL)
                if stage.ended().signal == SIGKILL:
                    self.killed()

    def _await_a_moment(self) -> None:
        wanted = self._passed() + self.chance.randrange(MOST_OCTETS)
        end = time.monotonic() + PATIENCE
        while self._passed() < wanted and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(self.chance.uniform(0, MOST_SECONDS))

    def _passed(self) -> int:
        return sum(map(len, list(self.tap.streams)))

    def serve_and_die(self, service: Running, kills: int, until: threading.Event) -> None:
        """Have the service carry APDUs, and kill it or its worker now and then, and at last."""
        due = SERVICE_TURNS
        while not until.is_set():
            self.carry(service)
            if self.kills >= due and self.kills < kills:
                due = self.kills + SERVICE_TURNS
                if self.chance.random() < 1 / 2:
                    service.kill()
                    service = self.live.serve()
                else:
                    for worker in service.workers():
                        os.kill(worker, SIGKILL)
                self.killed()
        service.kill()

    def carry(self, service: Running) -> None:
        context = client_context(self.realm.home(THIRD), TITLES["utility"])
        with suppress(OSError, http.client.HTTPException):  # it was killed meanwhile
            status, _ = ask(context, service.port, f"/v1/meters/{TITLE}/apdu", self.apdu)
            self.carried += status == http.HTTPStatus.OK

    def uses(self) -> list[wire.Use]:
        """List every use of a key by the utility; raises AssertionError for an APDU that no key opens."""
        self.keys |= self.held()
        found, unopened = wire.uses(bytes.fromhex(TITLES["utility"]), map(bytes, self.tap.streams), self.keys)
        assert not unopened, f"{unopened} APDUs are under keys that nobody knows"
        return found


@contextmanager
def scene(seed: int) -> Iterator[Scene]:
    """Give the utility a meter that a third party reaches through its service."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hsmkm-counters-")))
        realm = build_realm(folder / "realm")
        settings = realm.home("utility") / "hsmkm.toml"
        settings.write_text(settings.read_text().replace("attempts_per_day = 48", "attempts_per_day = 100000"))
        reach = stack.enter_context(reached(realm, 1))
        tap = stack.enter_context(tapping(reach.address))
        with realm.open("utility") as party:
            moved(party, tap.address)
        with realm.open(THIRD) as party:
            protect(party, TITLE, Wanted(ENERGY), folder / "asked.apdu")
        live = stack.enter_context(open_field(realm))
        apdu = (folder / "asked.apdu").read_bytes()
        keys = reach.line.state.keys
        yield Scene(realm, live, tap, lambda: {keys[each] for each in KeyId}, apdu, random.Random(seed))  # noqa: S311 - when to kill


def strike(opened: Scene, kills: int, broken: str = "") -> list[str]:
    """Kill so often, then have all be in order again; what is not."""
    opened.kills, enough = 0, threading.Event()
    opened.keys |= opened.held()  # what the first APDUs are under, whatever is renewed before the first kill
    running = opened.live.serve()
    opened.carry(running)
    service = threading.Thread(target=opened.serve_and_die, args=(running, kills, enough))
    workers = [threading.Thread(target=opened.work_and_die, args=(kills, broken)) for _ in range(WORKERS)]
    for thread in (service, *workers):
        thread.start()
    for worker in workers:
        worker.join()
    enough.set()
    service.join()
    with Stage() as stage:
        ended = stage.run(Request("again", "talk", Place(str(opened.realm.folder))))
    problems = [f"IV {counter} was used twice under one key" for counter in wire.repeated(opened.uses())]
    if ended.answer is None or ended.answer.error:
        problems.append(f"at last the meter could not be settled: {ended}")
    else:
        problems += ended.answer.problems
    return problems


def run(sample: int | None, seed: int) -> Report:
    """Kill a thousand times, or `sample` times, and then the variant that forgets its counters."""
    with scene(seed) as opened:
        violations = strike(opened, sample or KILLS)
        hits = opened.kills
        if not opened.carried:
            violations.append("the service carried nothing")
        opened.tap.streams.clear()
        found = len(strike(opened, CONTROL_KILLS, BROKEN))
    return Report("counters", hits, tuple(violations), found)
