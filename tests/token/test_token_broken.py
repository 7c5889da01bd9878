"""A token that breaks in the midst of a call: a shim between the module and us fails, hangs, or loses answers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import IntegrityError, LoginError, TokenUnreachableError
from hsmkm.token import watch
from hsmkm.token.ckr import CODES, PinRefusedError
from hsmkm.token.session import open_session
from hsmkm.token.standing import StandingWorker
from hsmkm.token.types import KeyRole, Use
from hsmkm.token.vault import Vault
from hsmkm.token.workers import Worker
from tests.faults.shim import FOREVER, Plan, Shim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from hsmkm.token.types import TokenSettings

GENERAL_ERROR, DEVICE_ERROR = CODES["CKR_GENERAL_ERROR"], CODES["CKR_DEVICE_ERROR"]


@pytest.fixture
def profile_name() -> str:
    return "softhsm2"


@pytest.fixture
def broken(shim: Shim, token_settings: TokenSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenSettings]:
    """Settings of a token behind the shim, in this process and in the workers it starts."""
    for name, value in shim.environment().items():
        monkeypatch.setenv(name, value)
    yield shim.before(token_settings)
    shim.reset()


@pytest.fixture
def vault(broken: TokenSettings) -> Iterator[Vault]:
    with open_session(broken) as session:
        opened = Vault(session)
        opened.create_keys()
        yield opened


def test_a_failure_at_once_does_not_accuse_what_is_unwrapped_or_opened(vault: Vault, shim: Shim) -> None:
    with vault.generate(KeyRole.GUEK, 0) as guek, vault.generate(KeyRole.GAK, 0) as gak:
        sealed = {KeyRole.GUEK: vault.seal(guek), KeyRole.GAK: vault.seal(gak)}
    shim.arm(Plan("C_UnwrapKey", 1, "fail", GENERAL_ERROR))
    keys = [vault.open(role, each, 0, Use.IN_USE) for role, each in sealed.items()]
    assert shim.hits == 1
    with vault.cipher(*keys) as cipher:
        protected = cipher.protect(bytes(12), 0x30, b"", b"reading")
        shim.arm(Plan("C_Decrypt", 1, "lose", GENERAL_ERROR))
        assert cipher.unprotect(bytes(12), 0x30, b"", protected) == b"reading"
        assert shim.hits == 1
        with pytest.raises(IntegrityError):
            cipher.unprotect(bytes(12), 0x30, b"", protected[:-1] + bytes([protected[-1] ^ 1]))


def test_a_session_that_is_out_of_step_with_its_token_is_given_up(vault: Vault, shim: Shim) -> None:
    mac = vault.mac(b"data")
    shim.arm(Plan("C_Sign", 1, "fail", CODES["CKR_HOST_MEMORY"]))
    for _ in range(2):  # the second finds the operation that the first began
        with pytest.raises(TokenUnreachableError):
            vault.mac(b"data")
    vault.session.reconnect()
    vault.verify(b"data", mac)


@pytest.mark.parametrize("action", ["fail", "lose"])
def test_a_login_without_an_answer_is_repeated_only_if_the_token_counts_no_wrong_pin(
    broken: TokenSettings, shim: Shim, action: str
) -> None:
    shim.arm(Plan("C_Login", 1, action, DEVICE_ERROR))
    with pytest.raises(TokenUnreachableError), open_session(broken):
        pass
    with open_session(broken):
        pass
    path = broken.home / "token" / "pin"
    right = path.read_text()
    path.write_text("a wrong one")
    shim.arm(Plan("C_Login", 1, "lose", DEVICE_ERROR))
    for _ in range(2):
        with pytest.raises(LoginError), open_session(broken):
            pass
    assert shim.seen == 1
    path.write_text(right)


def log_in_unheard(
    settings: TokenSettings, work: ModuleType, shim: Shim, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Log in with a worker that does not live to hear the answer."""
    with monkeypatch.context() as patched:
        patched.setenv("SHIM_FAULT", shim.environment(Plan("C_Login", 1, action))["SHIM_FAULT"])
        with pytest.raises(TokenUnreachableError):
            Worker(work.open_vault, settings, token_seconds=1.0)


@pytest.mark.parametrize("action", ["mute", "die"])
def test_a_wrong_pin_whose_login_nobody_lived_to_hear_of_is_not_tried_again(
    broken: TokenSettings, work: ModuleType, shim: Shim, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    path = broken.home / "token" / "pin"
    right = path.read_text()
    path.write_text("a wrong one")
    log_in_unheard(broken, work, shim, monkeypatch, action)
    shim.arm(Plan("C_Login", 9, "fail", DEVICE_ERROR))
    for _ in range(2):
        with pytest.raises(PinRefusedError, match="got no answer"), open_session(broken):
            pass
    assert shim.seen == 0
    path.write_text(right)
    with open_session(broken):
        assert shim.seen == 1
    assert not (path.parent / "login.unanswered").exists()


def test_a_right_pin_whose_login_got_no_answer_is_tried_again_unless_a_wrong_one_is_counted(
    broken: TokenSettings, work: ModuleType, shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in_unheard(broken, work, shim, monkeypatch, "die")
    with open_session(broken):
        pass
    wrong = broken.home / "token" / "wrong"
    wrong.write_text("a wrong one")
    wrong.chmod(0o600)
    with pytest.raises(LoginError, match="CKR_PIN_INCORRECT"), open_session(replace(broken, pin="file:token/wrong")):
        pass
    log_in_unheard(broken, work, shim, monkeypatch, "kill")
    with pytest.raises(PinRefusedError) as caught, open_session(broken):
        pass
    mark = broken.home / "token" / "login.unanswered"
    assert str(mark) in caught.value.hint
    mark.unlink()
    with open_session(broken):
        pass


class Starts:
    """Starts workers whose token has a second to answer."""

    def __init__(self, work: ModuleType, settings: TokenSettings) -> None:
        self.work, self.settings, self.count = work, settings, 0

    def __call__(self) -> Worker[Vault]:
        self.count += 1
        return Worker(self.work.open_vault, self.settings, token_seconds=1.0)


def test_a_call_that_hangs_ends_its_worker_and_the_next_one_serves(
    broken: TokenSettings, work: ModuleType, shim: Shim
) -> None:
    starts = Starts(work, broken)
    with StandingWorker(starts) as worker:
        worker.call(work.arm, shim, Plan("C_Sign", 2, "hang"))
        mac = worker.call(work.mac, b"data")
        began = time.monotonic()
        with pytest.raises(TokenUnreachableError, match="the token did not answer within"):
            worker.call(work.mac, b"data")
        assert time.monotonic() - began > 1.0
        assert worker.call(work.mac, b"data") == mac
        assert starts.count == 2


@pytest.mark.parametrize(
    ("name", "arguments", "plan"),
    [
        ("bear", (1,), Plan("C_GenerateKey", 2, "hang")),
        ("mac_in_bulk", (), Plan("C_Sign", 1, "hang")),
        ("move_in_bulk", (), Plan("C_UnwrapKey", 1, "hang")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_call_of_bulk_work_that_hangs_ends_its_worker_too(
    broken: TokenSettings, work: ModuleType, shim: Shim, name: str, arguments: tuple[int, ...], plan: Plan
) -> None:
    with Starts(work, broken)() as worker:
        worker.call(getattr(work, name), *arguments)
        worker.call(work.arm, shim, plan)
        with pytest.raises(TokenUnreachableError, match="the token did not answer within"):
            worker.call(getattr(work, name), *arguments, deadline=60)


def test_every_module_that_calls_the_token_is_watched() -> None:
    files = Path(watch.__file__).parent.glob("*.py")
    callers = {f"hsmkm.token.{file.stem}" for file in files if 'functions["C_' in file.read_text(encoding="utf-8")}
    assert callers == watch._CALLERS


def test_a_token_that_is_slow_but_answers_is_waited_for(broken: TokenSettings, work: ModuleType, shim: Shim) -> None:
    with Worker(work.open_vault, broken, token_seconds=1.0) as worker:
        worker.call(work.arm, shim, Plan("C_Sign", 1, "delay", 100, FOREVER))
        for _ in range(15):
            worker.call(work.mac, b"data")


def test_a_worker_that_works_long_without_the_token_is_left_alone(work: ModuleType) -> None:
    with Worker(work.nothing, token_seconds=0.2) as worker:
        worker.call(work.sleep, 1.0)
        assert worker.alive


def test_a_token_that_hangs_when_it_is_initialised_ends_the_start(
    broken: TokenSettings, work: ModuleType, shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shim.environment(Plan("C_Initialize", 1, "hang")).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TokenUnreachableError, match="did not answer"):
        Worker(work.open_vault, broken, token_seconds=1.0)
