"""A token that breaks: at each of its calls, in each operation of a party, with each of its ways to fail.

The shim stands between the party and SoftHSM. A call fails, or is done and its answer lost; then the operation is given
again, in the way an operator would, and must end within RECOVERY_SECONDS with nothing lost and nobody's key in
another's place. In workers the same calls hang, or end the process. A service's worker must serve again.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from hsmkm.errors import HsmkmError, LoginError, TokenBusyError, TokenUnreachableError
from hsmkm.service.party_desk import PartyDesk
from hsmkm.steps.party import Party, open_party
from hsmkm.token import ckr, keys, standing
from hsmkm.token.standing import StandingWorker
from hsmkm.token.types import KeyRole
from hsmkm.token.workers import Worker
from tests.faults.record import read
from tests.faults.report import Report
from tests.faults.shim import FOREVER, NOTHING, Plan, Shim, build
from tests.faults.theatre import OPERATIONS, Operation, Stage, Theatre, checked
from tests.ports import held_port
from tests.realm import ACTOR

T = TypeVar("T")
NAME = "token"
RECOVERY_SECONDS = 5.0
TOKEN_SECONDS = 1.0
HANG_SECONDS = 4 * TOKEN_SECONDS
OVERDUE = "the token's worker did not answer"
"""What the owner of a worker says that did not end itself in time."""

CODES = tuple(
    ckr.CODES[f"CKR_{name}"]
    for name in (
        "SESSION_HANDLE_INVALID",
        "DEVICE_ERROR",
        "DEVICE_REMOVED",
        "TOKEN_NOT_PRESENT",
        "GENERAL_ERROR",
        "USER_NOT_LOGGED_IN",
        "CRYPTOKI_NOT_INITIALIZED",
        "FUNCTION_FAILED",
        "PIN_LOCKED",
        "HOST_MEMORY",
    )
)
GONE_STEP = 7
ENDINGS = ("hang", "kill", "die")
PIN_LOCKED, PIN_INCORRECT = ckr.CODES["CKR_PIN_LOCKED"], ckr.CODES["CKR_PIN_INCORRECT"]
UNHEARD = (
    Plan("C_Login", 1, "lose", ckr.CODES["CKR_DEVICE_ERROR"]),
    Plan("C_Login", 1, "mute"),
    Plan("C_Login", 1, "die"),
)
"""Logins that the token counts, and whose answer nobody hears."""
SHARES = {"calls": 0.7, "workers": 0.2, "service": 0.1}


@dataclass
class Tally:
    """What the injections hit and broke."""

    hits: int = 0
    violations: list[str] = field(default_factory=list)

    def say(self, operation: str, plan: Plan, text: str) -> None:
        """Note a violation."""
        self.violations.append(f"{operation}, {plan.told}: {text}")


@dataclass(frozen=True, slots=True)
class Injection:
    """One fault in one run of an operation."""

    operation: Operation
    plan: Plan


def patience(seconds: float) -> float:
    """Stretch a limit by as many times as this machine has more to do than it can."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def run(sample: int | None, seed: int) -> Report:
    """Break every call of every operation, or a sample of them; and see a client that breaks its promises."""
    shim = build()
    with tempfile.TemporaryDirectory() as folder, through(shim), held_port() as port:
        theatre = Theatre(Path(folder), shim, port)
        every = _injections(theatre)
        calls, workers = _chosen(every, sample, seed, "calls"), _chosen(_endings(every), sample, seed, "workers")
        tally = _break_all() if sample is None else _break(theatre, calls, workers)
        for plan in _chosen(_in_service(), sample, seed, "service"):
            break_service(theatre, plan, tally)
        for answer in (None, *UNHEARD):
            try_wrong_pin(theatre, answer, tally)
        try_two_keys(theatre, tally)
        found = negative_controls(theatre)
    return Report(NAME, tally.hits, tuple(tally.violations), found)


def _break(theatre: Theatre, calls: Sequence[Injection], workers: Sequence[Injection]) -> Tally:
    """Strike calls in this process and in workers."""
    tally = Tally()
    for injection in calls:
        break_call(theatre, injection, tally)
    for injection in workers:
        break_worker(theatre, injection, tally)
    return tally


def _break_all() -> Tally:
    """Strike every call there is, with as many processes as there are cores."""
    cores = os.cpu_count() or 1
    tally = Tally()
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        for share in pool.map(_break_share, range(cores), [cores] * cores):
            tally.hits += share.hits
            tally.violations += share.violations
    return tally


def _break_share(place: int, of: int) -> Tally:
    """Strike every call whose turn it is."""
    shim = build()
    with tempfile.TemporaryDirectory() as folder, through(shim), held_port() as port:
        theatre = Theatre(Path(folder), shim, port)
        every = _injections(theatre)
        return _break(theatre, every[place::of], _endings(every)[place::of])


@contextmanager
def through(shim: Shim) -> Iterator[None]:
    """Let this process and those it starts load the shim for every token, and say little."""
    logging.disable(logging.WARNING)  # a service says of each refusal why it is not ready
    with patch.dict(os.environ, shim.environment()):
        try:
            yield
        finally:
            shim.reset()
            logging.disable(logging.NOTSET)


def _chosen(every: Sequence[T], sample: int | None, seed: int, part: str) -> Sequence[T]:
    if sample is None:
        return every
    share = max(1, round(sample * SHARES[part]))
    return random.Random(f"{part} {seed}").sample(every, min(share, len(every)))  # noqa: S311 - chooses tests


# What there is to break


def _injections(theatre: Theatre) -> list[Injection]:
    """List a fault for each call of each operation, two for the first of a name, and a token that goes for good.

    Return values take turns, and so do calls that fail and calls whose answer is lost. The last call of each name is
    one too far: the work passes untouched.
    """
    found: list[Injection] = []
    for operation in OPERATIONS:
        calls = theatre.calls(operation)
        sites = [(name, nth) for name in sorted(set(calls)) for nth in range(1, calls.count(name) + 2)]
        for place, (name, nth) in enumerate(sites, len(found)):
            plans = [
                Plan(name, nth, "fail", CODES[place % len(CODES)]),
                Plan(name, nth, "lose", CODES[(place + place // len(CODES)) % len(CODES)]),
            ]
            found += [Injection(operation, plan) for plan in (plans if nth == 1 else plans[nth % 2 :][:1])]
        found += [
            Injection(operation, Plan("*", nth, "fail", CODES[nth // GONE_STEP % len(CODES)], FOREVER))
            for nth in range(1, len(calls) + 1, GONE_STEP)
        ]
    return found


def _endings(every: Sequence[Injection]) -> list[Injection]:
    """List one call of each name in each operation, which hangs, is killed, or dies with its answer."""
    sites = {(one.operation.name, one.plan.call): one for one in every if one.plan.nth == 1 and one.plan.times == 1}
    return [
        Injection(one.operation, Plan(one.plan.call, 1, ENDINGS[place % len(ENDINGS)]))
        for place, one in enumerate(sites.values())
    ]


def _in_service() -> list[Plan]:
    plans = [Plan("C_Sign", 1, "fail", code) for code in CODES]
    plans += [Plan("C_SignInit", 1, "lose", code, FOREVER) for code in CODES]
    return [*plans, Plan("C_Sign", 2, "hang"), Plan("C_Sign", 1, "kill"), Plan("C_Sign", 1, "die")]


# One fault, and what must be true after it


def break_call(theatre: Theatre, injection: Injection, tally: Tally) -> None:
    """Strike one call of an operation in this process, and give the operation again as a new process would."""
    operation, plan = injection.operation, injection.plan
    stage = theatre.stage(operation)
    with stage.meter_served():
        theatre.shim.arm(plan)
        try:
            error = _error_of(stage, operation)
        finally:
            hits = theatre.shim.hits
            theatre.shim.reset()
        tally.hits += hits > 0
        if error is not None and not _is_clean(error, plan if hits else None):
            tally.say(operation.name, plan, f"ended with exit code {error.exit_code}: {error}")
        _give_again(stage.moved(), injection, tally)
    theatre.strike(stage)


def _error_of(stage: Stage, operation: Operation) -> HsmkmError | None:
    try:
        with open_party(stage.home, ACTOR) as party:
            operation.work(party, stage)
    except HsmkmError as error:
        return error
    return None


def _is_clean(error: HsmkmError, plan: Plan | None) -> bool:
    """Exit code 3, or 4 where the token itself said that the PIN is locked; nothing where nothing was struck."""
    expected = LoginError if plan is not None and plan.code == PIN_LOCKED else TokenUnreachableError
    return plan is not None and isinstance(error, expected)


def _give_again(stage: Stage, injection: Injection, tally: Tally) -> None:
    operation, plan = injection.operation, injection.plan
    began = time.monotonic()
    try:
        with open_party(stage.home, ACTOR) as party:
            operation.again(party, stage)
            took = time.monotonic() - began
            wrongs = operation.wrongs(party, stage) + checked(party)
    except (HsmkmError, ValueError) as error:
        tally.say(operation.name, plan, f"does not go through afterwards: {type(error).__name__}: {error}")
        return
    for wrong in wrongs:
        tally.say(operation.name, plan, f"afterwards {wrong}")
    if took > patience(RECOVERY_SECONDS):
        tally.say(operation.name, plan, f"took {took:.1f} s to recover")


def break_worker(theatre: Theatre, injection: Injection, tally: Tally, answer: float | None = TOKEN_SECONDS) -> None:
    """Strike one call in a worker, which hangs there or ends; `answer` is how many seconds its token has."""
    operation, plan = injection.operation, injection.plan
    stage = theatre.stage(operation)
    struck = stage.folder / "struck"
    with stage.meter_served():
        try:
            with patch.dict(os.environ, theatre.shim.environment(plan, once=struck)):
                worker = Worker(open_party, stage.home, ACTOR, token_seconds=answer)
            with worker:
                worker.call(operation.work, stage, deadline=patience(HANG_SECONDS))
        except TokenUnreachableError as error:
            if OVERDUE in error.message:
                tally.say(operation.name, plan, "hung until its owner gave it up")
        except HsmkmError as error:
            tally.say(operation.name, plan, f"ended with exit code {error.exit_code}: {error}")
        tally.hits += struck.exists()
        _give_again(stage, injection, tally)
    theatre.strike(stage)


def break_service(theatre: Theatre, plan: Plan, tally: Tally) -> None:
    """Strike a call in a service's worker: the service must be ready again within RECOVERY_SECONDS of its refusal."""
    home = theatre.realm.home("utility")
    start = partial(Worker[Party], open_party, home, ACTOR, token_seconds=TOKEN_SECONDS)
    with StandingWorker(start) as worker:
        desk = PartyDesk(home, worker)
        worker.call(arm, theatre.shim, plan)
        answers = [_is_ready(desk)]
        tally.hits += not answers[0]
        began = time.monotonic()
        while not (answers[-1] and len(answers) > 1) and time.monotonic() - began < patience(2 * RECOVERY_SECONDS):
            answers.append(_is_ready(desk))
        took = time.monotonic() - began
    if not answers[-1]:
        tally.say("serve", plan, "is not ready again")
    elif took > patience(RECOVERY_SECONDS):
        tally.say("serve", plan, f"took {took:.1f} s to be ready again")


def arm(_party: Party, shim: Shim, plan: Plan) -> None:
    """Strike in the worker that runs this."""
    shim.arm(plan)


def _is_ready(desk: PartyDesk) -> bool:
    ready, _ = desk.ready()
    time.sleep(0 if ready else 0.05)
    return ready


def try_wrong_pin(theatre: Theatre, answer: Plan | None, tally: Tally) -> None:
    """Count the logins of a service whose worker died, and whose PIN had become a wrong one meanwhile."""
    stage = theatre.stage(OPERATIONS[0])
    record, pin = stage.folder / "record", stage.home / "token" / "pin"
    start = partial(Worker[Party], open_party, stage.home, ACTOR, token_seconds=TOKEN_SECONDS)
    with StandingWorker(start, pause=0.0) as worker:
        desk = PartyDesk(stage.home, worker)
        worker.call(arm, theatre.shim, Plan("C_Sign", 1, "kill"))
        desk.ready()
        pin.write_text("a wrong one")
        with patch.dict(os.environ, theatre.shim.environment(answer, record=record)):
            for _ in range(3):
                desk.ready()
            if answer is not None:  # nobody told the operator that the PIN is wrong, who gives the next command
                with suppress(HsmkmError):
                    start().end()
    logins = [call["code"] for call in read(record) if call["call"] == "C_Login"]
    tally.hits += PIN_INCORRECT in logins
    if logins != [PIN_INCORRECT]:
        tally.say("serve", answer or NOTHING, f"{len(logins)} logins with a wrong PIN")
    theatre.strike(stage)


def try_two_keys(theatre: Theatre, tally: Tally) -> None:
    """Use the handle of one key when, after a re-initialisation, its number is that of another."""
    stage = theatre.stage(OPERATIONS[0])
    lost = Plan("C_WrapKey", 1, "fail", CODES[0])
    with open_party(stage.home, ACTOR) as party:
        vault = party.vault
        asked_for = vault.generate(KeyRole.GUEK, 0)
        wanted = vault.seal(asked_for)
        number = asked_for.number()
        theatre.shim.arm(lost)
        with suppress(TokenUnreachableError):
            vault.seal(asked_for)
        tally.hits += theatre.shim.hits
        vault.session.reconnect()
        others = {}
        while number not in others:
            other = vault.generate(KeyRole.GUEK, 0)
            others[other.number()] = other
        try:
            found = vault.seal(asked_for)
        except TokenUnreachableError:
            found = wanted
    if found != wanted:
        tally.say("two keys", lost, "another key than the one asked for was wrapped")
    theatre.shim.disarm()
    theatre.strike(stage)


# The negative controls


def negative_controls(theatre: Theatre) -> int:
    """Count the variants that were found out: each breaks one promise."""
    return sum(bool(control(theatre)) for control in CONTROLS)


def _blind(theatre: Theatre) -> list[str]:
    """A client that does not tell a token that is gone from one that refuses."""
    tally = Tally()
    with patch.object(ckr, "GONE", frozenset[int]()):
        break_call(theatre, Injection(operation_named("read"), Plan("C_SignInit", 1, "fail", CODES[1])), tally)
    return tally.violations


def _forgetful(theatre: Theatre) -> list[str]:
    """An operation that does nothing when it is given again."""
    tally = Tally()
    idle = replace(operation_named("provision"), again=lambda _party, _stage: None)
    break_call(theatre, Injection(idle, Plan("C_GenerateKey", 1, "fail", CODES[1])), tally)
    return tally.violations


def _endless(theatre: Theatre) -> list[str]:
    """A worker that waits for its token as long as it takes."""
    tally = Tally()
    break_worker(theatre, Injection(operation_named("read"), Plan("C_EncryptInit", 1, "hang")), tally, answer=None)
    return tally.violations


def _obstinate(theatre: Theatre) -> list[str]:
    """A service that tries a PIN again which the token called wrong."""
    tally = Tally()
    with patch.object(standing, "LoginError", TokenBusyError):
        try_wrong_pin(theatre, None, tally)
    return tally.violations


def _stale(theatre: Theatre) -> list[str]:
    """A handle that outlives its session generation."""
    tally = Tally()
    with patch.object(keys.KeyHandle, "number", lambda self: self._object):
        try_two_keys(theatre, tally)
    return tally.violations


def operation_named(name: str) -> Operation:
    """Find one of the operations."""
    return next(operation for operation in OPERATIONS if operation.name == name)


CONTROLS = (_blind, _forgetful, _endless, _obstinate, _stale)
