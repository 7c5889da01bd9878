"""What a meter costs in calls of the token, counted by OpenSC's pkcs11-spy between the real commands and SoftHSM.

A command is run for a few meters and for twenty more: the difference is what twenty meters cost, and what a command
does once falls out of it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsmkm.store import models
from hsmkm.token.profile import load_profile
from tests.associations import MODEL as TWO_CLIENTS
from tests.realm import Realm

pytestmark = pytest.mark.slow
SPIES = ("/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so", "/usr/lib/pkcs11/pkcs11-spy.so")
FEW, MORE = 3, 20
_CALL = re.compile(r"^\d+: (C_\w+)$", re.MULTILINE)
_LENGTH_QUESTION = re.compile(r"^\[out\] \w+\[\*?\w+\] NULL|^    CKA_.* 0+ / 0$", re.MULTILINE)
_DATA_MADE = re.compile(r"^\d+: C_CreateObject\n(?:(?!\d+: C_).*\n)*?    CKA_CLASS +CKO_DATA", re.MULTILINE)
_VALUE_READ = re.compile(r"^\[out\] pTemplate\[\d+\]: \n(?:    .*\n)*?    CKA_VALUE ", re.MULTILINE)


@dataclass(frozen=True)
class Spy:
    """A module that writes every call that passes it to a file."""

    path: str
    log: Path

    def environment(self) -> dict[str, str]:
        self.log.unlink(missing_ok=True)
        return {"PKCS11SPY": load_profile("softhsm2").module(""), "PKCS11SPY_OUTPUT": str(self.log)}

    def watch(self, realm: Realm, name: str, *arguments: str) -> str:
        """Run a command with the spy as its module, and give what the spy wrote."""
        done = realm.cli(name, *arguments, environment=self.environment() | {"HSMKM_TOKEN_MODULE": self.path})
        assert done.returncode == 0, done.stderr
        return self.log.read_text(errors="replace")


@pytest.fixture
def spy(tmp_path: Path) -> Spy:
    found = [path for path in SPIES if Path(path).is_file()]
    if not found:
        pytest.skip("OpenSC's pkcs11-spy is not installed")
    return Spy(found[0], tmp_path / "spy.log")


def calls(log: str) -> Counter[str]:
    return Counter(_CALL.findall(log))


def questions(log: str) -> list[str]:
    """Calls that ask how long an answer would be instead of taking it."""
    return [block.split("\n")[0] for block in re.split(r"\n(?=\d+: C_)", log) if _LENGTH_QUESTION.search(block)]


def twenty_more(few: str, many: str) -> Counter[str]:
    more = calls(many)
    more.subtract(calls(few))
    return Counter({name: count for name, count in more.items() if count})


def test_provisioning_costs_eighteen_calls_a_meter_and_none_asks_for_a_length(realm: Realm, spy: Spy) -> None:
    few, many = (
        spy.watch(realm, "factory", "meter", "provision", str(realm.order(*serials, name=name)), "--line", "line")
        for name, serials in (("few.csv", range(1, 1 + FEW)), ("many.csv", range(100, 100 + FEW + MORE)))
    )
    assert twenty_more(few, many) == {
        "C_GenerateKey": 4 * MORE,
        "C_WrapKey": 8 * MORE,
        "C_DestroyObject": 4 * MORE,
        "C_SignInit": MORE,
        "C_Sign": MORE,
    }
    assert twenty_more(few, many).total() == 18 * MORE
    assert questions(many) == []


def test_provisioning_costs_eighteen_calls_for_each_association(realm: Realm, spy: Spy) -> None:
    logs = []
    with realm.open("factory") as party, party.store.begin("model-known", TWO_CLIENTS, {}) as tx:
        models.intern(tx, TWO_CLIENTS)  # its row is authenticated once, whatever comes of it
    for name, serials in (("few.csv", range(1, 1 + FEW)), ("many.csv", range(100, 100 + FEW + MORE))):
        order = realm.folder / name
        lines = [f"MMM,{serial},{TWO_CLIENTS},0\n" for serial in serials]
        order.write_text("flag,serial,model,suite\n" + "".join(lines))
        logs.append(spy.watch(realm, "factory", "meter", "provision", str(order), "--line", "line"))
    assert twenty_more(*logs).total() == 2 * 18 * MORE
    assert questions(logs[1]) == []


def test_provisioning_reads_no_keys_value_and_gives_the_token_one_the_agreed_key_of_the_package(
    realm: Realm, spy: Spy
) -> None:
    log = spy.watch(realm, "factory", "meter", "provision", str(realm.order(*range(1, 6))), "--line", "line")
    assert not _VALUE_READ.search(log)
    assert calls(log)["C_CreateObject"] - len(_DATA_MADE.findall(log)) == 1
    assert len(re.findall(r"^    CKA_VALUE ", log, re.MULTILINE)) == 1


def test_export_and_import_cost_fourteen_calls_a_meter_and_none_asks_for_a_length(realm: Realm, spy: Spy) -> None:
    lots = [range(1, 1 + FEW), range(100, 100 + FEW + MORE)]
    orders = [realm.order(*lot, name=f"{lot[0]}.csv") for lot in lots]
    ids = [realm.rows("factory", "meter", "provision", str(order), "--line", "line")[0]["order"] for order in orders]
    exports = [spy.watch(realm, "factory", "package", "export", "--order", each, "--to", "utility") for each in ids]
    packages = {
        row["meters"]: realm.home("factory") / "packages" / f"{row['package']}.p7m"
        for row in realm.rows("factory", "package", "list")
        if row["purpose"] == "delivery"
    }
    with realm.open("utility") as party, party.store.begin("model-known", "virtual", {}) as tx:
        models.intern(tx, "virtual")  # its row is authenticated once, whatever comes of it
    imports = [spy.watch(realm, "utility", "package", "import", str(packages[len(lot)])) for lot in lots]
    for few, many in (exports, imports):
        assert questions(many) == []
        assert not _VALUE_READ.search(many)
        assert twenty_more(few, many) == {
            "C_UnwrapKey": 4 * MORE,
            "C_WrapKey": 4 * MORE,
            "C_DestroyObject": 4 * MORE,
            "C_SignInit": MORE,
            "C_Sign": MORE,
        }
        assert twenty_more(few, many).total() == 14 * MORE


PEER = """
import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag
import sys
token = pkcs11.lib(sys.argv[1]).get_token(token_label="factory")
with token.open(user_pin=sys.stdin.read().strip()) as session:
    under = session.generate_key(KeyType.AES, 256, store=False, capabilities=MechanismFlag.WRAP)
    listed = {Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False}
    key = session.generate_key(KeyType.AES, 128, store=False, template=listed)
    under.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP)
    key[Attribute.VALUE]
"""


def test_the_same_log_shows_the_length_questions_and_the_read_value_of_another_program(realm: Realm, spy: Spy) -> None:
    token = realm.home("factory") / "token"
    environment = os.environ | spy.environment() | {"SOFTHSM2_CONF": str(token / "softhsm2.conf")}
    with realm.open("factory"):
        pass  # the copied home's softhsm2.conf points at it from now on
    pin = (token / "pin").read_bytes()
    subprocess.run([sys.executable, "-c", PEER, spy.path], input=pin, env=environment, check=True)
    log = spy.log.read_text(errors="replace")
    assert {question.split()[1] for question in questions(log)} == {"C_GetAttributeValue", "C_WrapKey"}
    assert _VALUE_READ.search(log)
