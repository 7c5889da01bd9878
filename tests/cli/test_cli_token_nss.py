"""NSS softoken as a party's token: when it is away, or its PIN wrong, and the commands that make and use keys there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hsmkm.steps.setup import set_in_file
from hsmkm.token.profile import load_profile
from tests.command import failed
from tests.realm import Realm

SPIES = ("/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so", "/usr/lib/pkcs11/pkcs11-spy.so")
SPY = next((path for path in SPIES if Path(path).is_file()), "")
WRONG = "neither-right-nor-shown"
CHECK = ("store", "check")


@pytest.mark.skipif(not SPY, reason="OpenSC's pkcs11-spy is not installed")
def test_a_wrong_pin_is_tried_once_and_not_shown(realm_on_nss: Callable[..., Realm]) -> None:
    realm = realm_on_nss()
    log = realm.folder / "spy.log"
    spied = {"PKCS11SPY": load_profile("nss").module(""), "PKCS11SPY_OUTPUT": str(log)}
    set_in_file(realm.home("utility") / "hsmkm.toml", "token", "module", SPY)
    (realm.home("utility") / "token" / "pin").write_text(WRONG)
    done = realm.cli("utility", *CHECK, environment=spied)
    assert "CKR_PIN_INCORRECT" in failed(done, 4)[0]
    assert WRONG not in done.stdout + done.stderr
    assert len(re.findall(r"^\d+: C_Login", log.read_text(errors="replace"), re.MULTILINE)) == 1


def test_a_database_that_is_gone_is_unreachable_until_it_is_back_and_none_is_made_in_its_place(
    realm_on_nss: Callable[..., Realm],
) -> None:
    realm = realm_on_nss()
    database = realm.home("utility") / "token" / "nss"
    database.rename(database.with_name("away"))
    assert "there is no database" in failed(realm.cli("utility", *CHECK), 3)[0]
    database.mkdir()
    assert "there is no database" in failed(realm.cli("utility", *CHECK), 3)[0]
    assert list(database.iterdir()) == []
    database.rmdir()
    database.with_name("away").rename(database)
    assert realm.rows("utility", *CHECK) == []
    (database / "key4.db").write_bytes(b"no database")
    failed(realm.cli("utility", *CHECK), 3)


def test_a_database_of_another_party_is_not_worked_with(realm_on_nss: Callable[..., Realm]) -> None:
    """NSS gives each database the label it is asked for, and one serial number: only PIN and keys tell them apart."""
    realm = realm_on_nss()
    ours, theirs = (realm.home(name) / "token" for name in ("utility", "factory"))
    shutil.rmtree(ours / "nss")
    shutil.copytree(theirs / "nss", ours / "nss")
    failed(realm.cli("utility", *CHECK), 4)
    shutil.copy(theirs / "pin", ours / "pin")
    rows = realm.cli("utility", *CHECK)
    assert rows.returncode == 6, rows.stderr
