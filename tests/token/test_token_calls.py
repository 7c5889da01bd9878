"""What reaches the module, counted by OpenSC's pkcs11-spy between us and the token."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import LoginError
from hsmkm.token.profile import load_profile
from hsmkm.token.workers import Worker

if TYPE_CHECKING:
    from types import ModuleType

    from hsmkm.token.types import TokenSettings

SPIES = ("/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so", "/usr/lib/pkcs11/pkcs11-spy.so")
SPY = next((path for path in SPIES if Path(path).is_file()), "")
pytestmark = pytest.mark.skipif(not SPY, reason="OpenSC's pkcs11-spy is not installed")


@pytest.fixture
def profile_name() -> str:
    return "softhsm2"


@pytest.fixture
def log(profile_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PKCS11SPY", load_profile(profile_name).module(""))
    monkeypatch.setenv("PKCS11SPY_OUTPUT", str(tmp_path / "spy.log"))
    return tmp_path / "spy.log"


def calls(log: Path) -> Counter[str]:
    return Counter(re.findall(r"^\d+: (C_\w+)", log.read_text(errors="replace"), re.MULTILINE))


def test_provisioning_a_meter_is_eighteen_calls(work: ModuleType, token_settings: TokenSettings, log: Path) -> None:
    with Worker(work.open_vault, replace(token_settings, module=SPY)) as worker:
        worker.call(work.provision, 1)
        before = calls(log)
        worker.call(work.provision, 11)
        after = calls(log) - before
    after -= Counter({"C_GenerateKey": 1, "C_DestroyObject": 1})  # the package key of the second call
    meters = 11
    assert after == Counter(
        {
            "C_GenerateKey": 4 * meters,
            "C_WrapKey": 8 * meters,
            "C_DestroyObject": 4 * meters,
            "C_SignInit": meters,
            "C_Sign": meters,
        }
    )
    assert sum(after.values()) == 18 * meters


@pytest.mark.parametrize("in_own_session", [False, True])
def test_key_sets_in_bulk_are_eighteen_calls_each_or_fourteen(
    work: ModuleType, token_settings: TokenSettings, log: Path, *, in_own_session: bool
) -> None:
    bear = work.bear_in_own_session if in_own_session else work.bear
    with Worker(work.open_vault, replace(token_settings, module=SPY)) as worker:
        worker.call(bear, 1)
        before = calls(log)
        worker.call(bear, 1)
        once = calls(log) - before
        before = calls(log)
        worker.call(bear, 12)
        more = calls(log) - before - once
    sets = 11
    made = {"C_GenerateKey": 4 * sets, "C_WrapKey": 8 * sets, "C_SignInit": sets, "C_Sign": sets}
    assert more == Counter(made if in_own_session else made | {"C_DestroyObject": 4 * sets})
    assert once["C_OpenSession"] == once["C_CloseSession"] == int(in_own_session)


def test_a_wrong_pin_is_one_login_for_the_process(
    work: ModuleType, token_settings: TokenSettings, log: Path, new_pin_file: Path
) -> None:
    settings = replace(token_settings, module=SPY, pin=f"file:{new_pin_file}")
    with Worker(work.nothing) as worker:
        for _ in range(3):
            with pytest.raises(LoginError):
                worker.call(work.log_in, settings)
    assert calls(log)["C_Login"] == 1


@pytest.fixture
def new_pin_file(tmp_path: Path) -> Path:
    path = tmp_path / "wrong-pin"
    path.write_text("not the PIN\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("profile_name", ["nss"])
def test_nss_derives_every_agreed_key_itself(work: ModuleType, token_settings: TokenSettings, log: Path) -> None:
    with Worker(work.open_vault, replace(token_settings, module=SPY, kdf_on_host=False)) as worker:
        worker.call(work.agree_both_ways)
    counted = calls(log)
    assert counted["C_DeriveKey"] >= 8
    assert counted["C_DigestKey"] == 0
    assert counted["C_CreateObject"] == 0
