"""The steps on NSS softoken, alone and beside SoftHSM: whoever makes a party's token, the other end never notices.

NSS derives agreed keys by itself, so its parties' policy forbids the host to (`kdf_on_host = false`). OpenSC's
pkcs11-spy stands between every process and softoken, and its record shows that no value ever went in.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsmkm.config import load_settings
from hsmkm.errors import PolicyError
from hsmkm.pki.slots import P384
from hsmkm.steps import model
from hsmkm.steps.deliver import accept_receipt
from hsmkm.steps.exporting import export
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_file
from hsmkm.steps.renew import ALL_KEYS, renew
from hsmkm.token.profile import load_profile
from tests.field import Field, deliver_meters, energy, open_field, state_path
from tests.proofs.openssl import open_package
from tests.proofs.peer import add_pem_party
from tests.proofs.search import Needles
from tests.realm import KEY_OCTETS, TITLES, Realm, build_realm, title_of

pytestmark = pytest.mark.slow

FLEET = {1: 0, 2: 1, 3: 2}
TITLES_OF_FLEET = tuple(map(title_of, FLEET))
READING = 123_456
SPIES = ("/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so", "/usr/lib/pkcs11/pkcs11-spy.so")
_CALL = re.compile(r"^\d+: (C_\w+)$", re.MULTILINE)
_DUMP = re.compile(r"^    [0-9A-F]{8}  ((?:[0-9A-F]{2} )+)", re.MULTILINE)
_VALUE_READ = re.compile(r"^\[out\] pTemplate\[\d+\]: \n(?:    .*\n)*?    CKA_VALUE ", re.MULTILINE)


@dataclass(frozen=True)
class Spied:
    """A realm on NSS, and what pkcs11-spy wrote of it."""

    realm: Realm
    log: Path

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Put the spy between softoken and every process from now on; a process keeps the log that it began with."""
        spies = [path for path in SPIES if Path(path).is_file()]
        modules = [path for path in load_profile("nss").modules if Path(path).is_file()]
        if not spies or not modules:
            pytest.skip("NSS softoken or OpenSC's pkcs11-spy is not installed")
        patch.setenv("PKCS11SPY", modules[0])
        patch.setenv("PKCS11SPY_OUTPUT", str(self.log))
        patch.setenv("HSMKM_TOKEN_MODULE", spies[0])
        patch.setenv("HSMKM_POLICY_IMPORT_KEYS", "false")

    def octets(self) -> bytes:
        """Everything that passed between the program and softoken."""
        return bytes.fromhex("".join(_DUMP.findall(self.text())))

    def calls(self) -> Counter[str]:
        return Counter(_CALL.findall(self.text()))


@pytest.fixture(scope="module")
def spied_realm(tmp_path_factory: pytest.TempPathFactory) -> Spied:
    """A realm on NSS whose every process speaks to softoken through the spy, from the first call on."""
    folder = tmp_path_factory.mktemp("spied")
    spied = Spied(Realm(folder / "realm"), folder / "spy.log")
    with pytest.MonkeyPatch.context() as patch:
        spied.watch(patch)
        build_realm(spied.realm.folder, dict.fromkeys(TITLES, "nss"), initial_keys=False)
    return spied


@pytest.fixture
def spied(spied_realm: Spied, monkeypatch: pytest.MonkeyPatch) -> Spied:
    spied_realm.watch(monkeypatch)
    return spied_realm


def on_the_line(realm: Realm, package: Path, key: Path, folder: Path) -> dict[str, dict[str, bytes]]:
    """Be the line equipment: open the injection package, and give the meters their first keys, which are returned."""
    keys = open_package(package, realm.folder / "pki" / "root.pem", key, folder)
    for serial, suite in FLEET.items():
        path = state_path(realm, serial)
        path.parent.mkdir(exist_ok=True)
        path.touch(0o600)
        held = {role: value.hex() for role, value in keys[title_of(serial)].items()}
        path.write_text(json.dumps({"system_title": title_of(serial), "suite": suite, "keys": held}))
    return keys


def held_by_meters(realm: Realm) -> dict[str, dict[str, bytes]]:
    """The keys that the meters hold in the end."""
    states = {title_of(serial): json.loads(state_path(realm, serial).read_text())["keys"] for serial in FLEET}
    return {title: {role: bytes.fromhex(value) for role, value in keys.items()} for title, keys in states.items()}


def named(keys: dict[str, dict[str, bytes]], when: str, roles: Collection[str]) -> dict[str, bytes]:
    return {
        f"{title} {role} {when}": value for title, held in keys.items() for role, value in held.items() if role in roles
    }


def forbids(realm: Realm) -> None:
    """No party of the realm may derive on the host or import keys."""
    for name in TITLES:
        policy = load_settings(realm.home(name)).policy
        assert (policy.kdf_on_host, policy.import_keys) == (False, False)


def registered_renewed_and_read(field: Field) -> None:
    """Steps 5 to 7 for the fleet."""
    field.serve()
    field.concentrate()
    outcomes = field.register(field.meters(*FLEET))
    assert {item.state for item in outcomes} == {"active"}
    with field.realm.open("utility") as party:
        again = renew(party, list(TITLES_OF_FLEET), ALL_KEYS, wait=30, prove_refusal=True)
        assert [(item.state, item.generation) for item in again] == [("active", 3)] * len(FLEET)
        assert [energy(party, serial) for serial in FLEET] == [READING] * len(FLEET)
    assert {state for _, state in field.package_states()} == {"accepted"}
    for serial, suite in FLEET.items():
        held = json.loads(state_path(field.realm, serial).read_text())["keys"]
        assert {len(bytes.fromhex(value)) for value in held.values()} == {KEY_OCTETS[suite]}


def test_the_seven_steps_run_on_nss_and_no_value_of_a_key_ever_goes_in(spied: Spied, tmp_path: Path) -> None:
    realm = spied.realm
    forbids(realm)
    key = add_pem_party(realm, "pem-line", "line", "4C494E0000000077", "factory", P384)
    with realm.open("factory") as party:
        (injection,) = provision(party, realm.mixed_order(FLEET), "pem-line").packages
        sent = export(party, "delivery", "utility", TITLES_OF_FLEET, None)
    first = on_the_line(realm, injection, key, tmp_path)
    with realm.open("utility") as party:
        receipt = receive_file(party, sent.path).receipt
    with realm.open("factory") as party:
        accept_receipt(party, receipt)
    assert not _VALUE_READ.search(spied.text()), "GAK is read while a meter is spoken to, and no other key ever"
    with open_field(realm) as field:
        registered_renewed_and_read(field)
    calls = spied.calls()
    assert calls["C_CreateObject"] == 0
    assert min(calls[name] for name in ("C_GenerateKey", "C_WrapKey", "C_UnwrapKey", "C_DeriveKey", "C_Encrypt")) > 0
    assert not {"C_DigestKey", "C_SetAttributeValue"} & calls.keys()
    last, kept = held_by_meters(realm), ("guek", "gbek", "master")
    needles = Needles(named(first, "first", kept) | named(last, "last", kept))
    assert needles.within(spied.octets()) == set()
    assert needles.in_files(realm.folder, [state_path(realm, serial) for serial in FLEET]) == {}
    gaks = Needles(named(last, "last", ("gak",))).within(spied.octets())
    assert {hit.split()[0] for hit in gaks} == set(TITLES_OF_FLEET), "GAK passes, and the search finds it"


def test_the_same_record_shows_a_key_that_is_imported(
    spied: Spied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "initial.keys"
    path.touch(0o600)
    path.write_text("".join(f"{role} = {os.urandom(16).hex()}\n" for role in ("guek", "gak", "master")))
    with spied.realm.open("factory") as party, pytest.raises(PolicyError, match="forbids to import keys"):
        model.import_keys(party, "virtual", 0, path)
    assert spied.calls()["C_CreateObject"] == 0
    monkeypatch.setenv("HSMKM_POLICY_IMPORT_KEYS", "true")
    with spied.realm.open("factory") as party:
        model.import_keys(party, "virtual", 0, path)
    assert spied.calls()["C_CreateObject"] == 3


@pytest.mark.parametrize("on_nss", [("factory", "concentrator"), ("utility", "authority")], ids="-".join)
def test_parties_with_tokens_of_two_makes_work_together(
    realm_on_nss: Callable[..., Realm], on_nss: tuple[str, ...]
) -> None:
    realm = realm_on_nss(*on_nss)
    profiles = {name: load_settings(realm.home(name)).token.profile for name in TITLES}
    assert profiles == {name: "nss" if name in on_nss else "softhsm2" for name in TITLES}
    deliver_meters(realm, FLEET)
    with open_field(realm) as field:
        registered_renewed_and_read(field)
