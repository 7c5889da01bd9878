"""When the token is away, or its PIN: exit codes 3 and 4, two lines, one login, and never a PIN."""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from hsmkm.steps.setup import set_in_file
from hsmkm.token.profile import load_profile
from tests.command import Done, failed, results
from tests.conftest import make_token
from tests.faults.shim import Plan, Shim
from tests.forge import everything
from tests.realm import ACTOR, HSMKM, Realm

SPIES = ("/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so", "/usr/lib/pkcs11/pkcs11-spy.so")
SPY = next((path for path in SPIES if Path(path).is_file()), "")
WRONG = "neither-right-nor-shown"
CHECK = ("store", "check")


def setting(realm: Realm, key: str, value: str, name: str = "utility") -> None:
    set_in_file(realm.home(name) / "hsmkm.toml", "token", key, value)


def pin_file(realm: Realm) -> Path:
    return realm.home("utility") / "token" / "pin"


def logins(log: Path) -> int:
    return len(re.findall(r"^\d+: C_Login", log.read_text(errors="replace"), re.MULTILINE)) if log.exists() else 0


@pytest.mark.slow
def test_a_token_folder_that_is_gone_is_unreachable_until_it_is_back(realm: Realm) -> None:
    tokens = realm.home("utility") / "token" / "tokens"
    tokens.rename(tokens.with_name("away"))
    failed(realm.cli("utility", *CHECK), 3)
    tokens.mkdir()
    assert "no token matches pkcs11:token=utility" in failed(realm.cli("utility", *CHECK), 3)[0]
    tokens.rmdir()
    tokens.with_name("away").rename(tokens)
    assert realm.rows("utility", *CHECK) == []


def test_an_address_that_no_token_or_two_tokens_match_is_unreachable(realm: Realm, tmp_path: Path) -> None:
    twin = make_token(tmp_path / "twin", "utility")
    shutil.copytree(twin.home / "token" / "tokens", realm.home("utility") / "token" / "tokens", dirs_exist_ok=True)
    assert realm.rows("utility", *CHECK) == []  # the serial number tells them apart
    setting(realm, "uri", "pkcs11:token=utility")
    assert "2 tokens match pkcs11:token=utility" in failed(realm.cli("utility", *CHECK), 3)[0]
    setting(realm, "uri", "pkcs11:token=utility;serial=0000000000000000")
    assert "no token matches" in failed(realm.cli("utility", *CHECK), 3)[0]


@pytest.mark.parametrize("content", [None, b"no library", b"\x7fELF"])
def test_a_module_that_is_missing_or_none_is_unreachable(realm: Realm, content: bytes | None) -> None:
    path = realm.folder / "module.so"
    if content is not None:
        path.write_bytes(content)
    setting(realm, "module", str(path))
    assert str(path) in failed(realm.cli("utility", *CHECK), 3)[0]


@pytest.mark.skipif(not SPY, reason="OpenSC's pkcs11-spy is not installed")
def test_a_wrong_pin_is_tried_once_by_each_command(realm: Realm) -> None:
    log = realm.folder / "spy.log"
    spied = {"PKCS11SPY": load_profile("softhsm2").module(""), "PKCS11SPY_OUTPUT": str(log)}
    setting(realm, "module", SPY)
    pin_file(realm).write_text(WRONG)
    for number, command in enumerate((CHECK, CHECK, ("resolve", "--all")), 1):
        done = realm.cli("utility", *command, environment=spied)
        assert "CKR_PIN_INCORRECT" in failed(done, 4)[0]
        assert WRONG not in done.stdout + done.stderr
        assert logins(log) == number


@pytest.mark.skipif(not SPY, reason="OpenSC's pkcs11-spy is not installed")
def test_a_concentrator_with_a_wrong_pin_stops_after_one_login(realm: Realm) -> None:
    """A process that replaces its worker when that died must not try the PIN again and again."""
    log = realm.folder / "spy.log"
    spied = {"PKCS11SPY": load_profile("softhsm2").module(""), "PKCS11SPY_OUTPUT": str(log)}
    home = realm.home("concentrator")
    setting(realm, "module", SPY, "concentrator")
    set_in_file(home / "hsmkm.toml", "concentrator", "aim_url", "https://127.0.0.1:9")
    set_in_file(home / "hsmkm.toml", "concentrator", "listen", "127.0.0.1:0")
    (home / "token" / "pin").write_text(WRONG)
    done = realm.cli("concentrator", "concentrator", "run", environment=spied)
    assert "CKR_PIN_INCORRECT" in failed(done, 4)[0]
    assert WRONG not in done.stdout + done.stderr
    assert logins(log) == 1


def test_a_pin_that_others_may_read_is_not_used(realm: Realm) -> None:
    pin_file(realm).chmod(0o644)
    done = realm.cli("utility", *CHECK)
    assert "others may read the PIN file" in failed(done, 4)[0]
    assert pin_file(realm).read_text().strip() not in done.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("file:token/none", "cannot open the PIN file"),
        ("file:token/tokens", "is not a regular file"),
        ("env:HSMKM_NO_SUCH_PIN", "the environment has no HSMKM_NO_SUCH_PIN"),
        ("fd:199", "file descriptor 199 of the PIN is not open"),
        ("credential:pin", "systemd passed no credentials"),
        ("command:false", "the PIN command ended with 1"),
        ("command:no-such-command-here", "the PIN command cannot be run"),
        ("prompt:", "no terminal to ask for the PIN"),
    ],
)
def test_a_source_without_a_pin_is_a_login_error(realm: Realm, source: str, expected: str) -> None:
    setting(realm, "pin", source)
    command = [str(HSMKM), "--home", str(realm.home("utility")), "--actor", ACTOR, *CHECK]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True, check=False
    )
    assert expected in failed(done, 4)[0]


def test_an_empty_pin_file_is_a_login_error(realm: Realm) -> None:
    pin_file(realm).write_text("")
    assert "a PIN has 1 to 255 octets" in failed(realm.cli("utility", *CHECK), 4)[0]


def test_a_pin_in_place_of_its_source_is_a_fault_and_is_not_shown(realm: Realm) -> None:
    setting(realm, "pin", "12345678")
    for command in (CHECK, ("config", "check"), ("config", "show")):
        done = realm.cli("utility", *command)
        _, (fault,) = failed(done, 1)
        assert re.search(r"hsmkm.toml:\d+: token.pin: must name a source", fault)
        assert "12345678" not in done.stdout + done.stderr


def test_the_pin_comes_from_the_environment_a_command_or_an_inherited_file(realm: Realm) -> None:
    pin = pin_file(realm).read_text().strip()
    moved = realm.folder / "pin"
    pin_file(realm).rename(moved)
    setting(realm, "pin", "env:UTILITY_PIN")
    assert results(realm.cli("utility", *CHECK, environment={"UTILITY_PIN": pin})) == []
    setting(realm, "pin", f"command:cat {moved}")
    assert realm.rows("utility", *CHECK) == []
    with moved.open("rb") as file:
        setting(realm, "pin", f"fd:{file.fileno()}")
        command = [str(HSMKM), "--home", str(realm.home("utility")), *CHECK]
        done = subprocess.run(command, pass_fds=(file.fileno(),), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("nss_installed")
def test_init_takes_the_kind_of_token_and_lets_the_host_derive_only_where_it_must(tmp_path: Path) -> None:
    realm = Realm(tmp_path)
    party = ("--role", "third-party", "--system-title", "5448490000000009", "--name")
    for name, profile, on_host in (("first", "softhsm2", "true"), ("second", "nss", "false")):
        realm.rows(name, "init", *party, name, "--profile", profile)
        shown = {row["setting"]: row["value"] for row in realm.rows(name, "config", "show")}
        assert (shown["token.profile"], str(shown["policy.kdf_on_host"]).lower()) == (profile, on_host)
    assert {row["key"] for row in realm.rows("second", "token", "init")} >= {"storage:1", "digital-signature"}
    verdicts = {row["check"]: row["ok"] for row in realm.rows("second", "token", "doctor")}
    assert set(verdicts.values()) == {"ok", "open", "declared"}
    assert verdicts["guard: readable unwrap"] == "open"
    refused = failed(realm.cli("third", "init", *party, "third", "--profile", "nosuch"), 1)
    assert refused[0] == "there is no token profile nosuch"
    assert not realm.home("third").exists()


def test_a_token_is_not_made_over_one_that_is_there(realm: Realm) -> None:
    before = sorted(path.name for path in (realm.home("utility") / "token" / "tokens").iterdir())
    setting(realm, "uri", "")
    assert "a token utility exists" in failed(realm.cli("utility", "token", "init"), 1)[0]
    assert sorted(path.name for path in (realm.home("utility") / "token" / "tokens").iterdir()) == before


def test_doctor_names_a_wrong_pin_and_ends_as_a_login_does(realm: Realm) -> None:
    pin_file(realm).write_text(WRONG)
    done = realm.cli("utility", "token", "doctor")
    assert done.returncode == 4
    (session,) = (row for row in results(done) if row["check"] == "session")
    assert (session["ok"], "CKR_PIN_INCORRECT" in session["detail"]) == ("FAILED", True)
    assert WRONG not in done.stdout + done.stderr


def test_a_module_that_crashes_ends_the_command_with_two_lines(realm: Realm) -> None:
    """Two folders that name one token make SoftHSM abort: the worker dies of it, the command does not."""
    tokens = realm.home("utility") / "token" / "tokens"
    (folder,) = (path for path in tokens.iterdir() if path.is_dir())
    shutil.copytree(folder, folder.with_name("00000000-0000-0000-0000-000000000000"))
    done = realm.cli("utility", *CHECK)
    assert done.returncode == 3
    error, hint = done.stderr.splitlines()[-2:]
    assert error == f"error: the token's worker ended with {-signal.SIGABRT}"
    assert hint.startswith("hint: ")


def test_a_module_that_hangs_ends_the_command_with_two_lines(realm: Realm, shim: Shim) -> None:
    hanging = shim.environment(Plan("C_Sign", 1, "hang")) | {"HSMKM_TOKEN_ANSWER_SECONDS": "1"}
    error, _ = failed(realm.cli("utility", *CHECK, environment=hanging), 3)
    assert error == "the token did not answer within 1 s, and the worker was ended"


def test_a_token_whose_files_were_damaged_is_refused_without_a_traceback(realm: Realm) -> None:
    tokens = realm.home("utility") / "token" / "tokens"
    for path in tokens.glob("*/*.object"):
        if path.name != "token.object":
            path.write_bytes(path.read_bytes()[:40])
    done = realm.cli("utility", *CHECK)
    assert done.returncode in (1, 3, 6)
    failed(done, done.returncode)


def with_room(realm: Realm, octets: int, *arguments: str) -> Done:
    """Run a command of the factory whose files may not grow beyond so many octets, as on a full disk."""
    command = [str(HSMKM), "--home", str(realm.home("factory")), "--output", "json", *arguments]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (octets, octets))

    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, preexec_fn=limit)


@pytest.mark.slow
def test_a_full_disk_stops_a_command_and_harms_nothing(realm: Realm) -> None:
    order = ("meter", "provision", str(realm.order(1)), "--line", "line")
    before = everything(realm, "factory")
    done = with_room(realm, 0, *order)
    assert "cannot be used: File too large" in failed(done, 3)[0]
    for octets in (4096, 65536):
        done = with_room(realm, octets, *order)
        assert done.returncode in (1, 3), done.stderr
        failed(done, done.returncode)
        assert everything(realm, "factory") == before
    (made,) = realm.rows("factory", *order)
    assert [str(path) for path in realm.home("factory").glob("packages/*")] == [made["package"]]
    assert realm.rows("factory", "store", "check") == []
