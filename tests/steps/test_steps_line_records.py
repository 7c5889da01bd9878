"""Legacy lines: records that open with the line's own key outside any token, and a key that is for one order."""

from __future__ import annotations

import hashlib
import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from hsmkm.errors import InputError, PolicyError, RefusedError
from hsmkm.steps.approve import ApprovalRequiredError
from hsmkm.steps.deliver import outbox
from hsmkm.steps.line_keys import check_value, destroy_line_key, import_line_key, line_keys
from hsmkm.steps.line_records import provision_records
from hsmkm.store import audit, holders, key_sets, meters, packages
from hsmkm.store.check import check
from tests.officers import set_policy
from tests.realm import Realm, title_of

KEY = bytes(range(32))


def component(folder: Path, octets: bytes, name: str = "component", mode: int = 0o600) -> Path:
    path = folder / name
    path.touch(mode)
    path.write_text(octets.hex() + "\n")
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(record: dict[str, Any], line_key: bytes) -> dict[str, bytes]:
    """Open a record as equipment without PKCS#11 or CMS does: RFC 3394 of another library."""
    wrapped = {role: bytes.fromhex(key["wrapped"]) for role, key in record["keys"].items()}
    master = aes_key_unwrap(line_key, wrapped.pop("master"))
    return {"master": master} | {role: aes_key_unwrap(master, each) for role, each in wrapped.items()}


@pytest.mark.parametrize("suite", [0, 2])
def test_the_records_of_an_order_open_with_its_line_key_alone(realm: Realm, tmp_path: Path, suite: int) -> None:
    order, key = realm.order(1, 2, 3, suite=suite), secrets.token_bytes(32)
    with realm.open("factory") as party:
        import_line_key(party, "press-7", order, [component(tmp_path, key)])
        done = provision_records(party, order, "press-7")
        assert provision_records(party, order, "press-7").already
        with party.store.read() as tx:
            stored = [key_sets.newest(tx, bytes.fromhex(title_of(serial)), 0, 1) for serial in (1, 2, 3)]
            held = {item.party for item in holders.for_meter(tx, bytes.fromhex(title_of(2)))}
            (sent,) = packages.listing(tx, peer="line:press-7")
            assert list(check(tx)) == []
    (path,) = done.packages
    found = records(path)
    keys = [opened(record, key) for record in found]
    assert [record["system_title"] for record in found] == [title_of(1), title_of(2), title_of(3)]
    assert {record["order"] for record in found} == {hashlib.sha256(order.read_bytes()).hexdigest()}
    assert {len(value) for each in keys for value in each.values()} == {32 if suite else 16}
    assert len({value for each in keys for value in each.values()}) == 12
    assert [
        {role: key["identity"] for role, key in record["keys"].items()} for record in found
    ] == [{key.role.value: key.identity.hex() for key in each.keys} for each in stored if each]  # fmt: skip
    assert held == {"line:press-7"}
    assert sent.sha256 == hashlib.sha256(path.read_bytes()).digest()
    assert path.stat().st_mode & 0o777 == 0o600


def test_openssl_opens_the_master_key_of_a_record(realm: Realm, tmp_path: Path) -> None:
    order = realm.order(1)
    with realm.open("factory") as party:
        import_line_key(party, "press-7", order, [component(tmp_path, KEY)])
        (path,) = provision_records(party, order, "press-7").packages
    (record,) = records(path)
    wrapped = bytes.fromhex(record["keys"]["master"]["wrapped"])
    command = ["openssl", "enc", "-d", "-id-aes256-wrap", "-K", KEY.hex(), "-iv", "A6" * 8]
    told = subprocess.run(command, input=wrapped, capture_output=True, check=True, timeout=60).stdout
    assert told == opened(record, KEY)["master"]


def test_a_line_key_of_two_components_is_their_xor_and_has_the_check_value_told(realm: Realm, tmp_path: Path) -> None:
    order = realm.order(1)
    other = secrets.token_bytes(32)
    parts = [
        component(tmp_path, other, "first"),
        component(tmp_path, bytes(a ^ b for a, b in zip(KEY, other, strict=True)), "second"),
    ]
    with realm.open("factory") as party:
        with pytest.raises(InputError, match="another check value"):
            import_line_key(party, "press-7", order, parts, "000000")
        held = import_line_key(party, "press-7", order, parts, check_value(bytearray(KEY)))
        assert [item.label for item in line_keys(party)] == ["press-7"]
        (path,) = provision_records(party, order, "press-7").packages
    assert held.check == check_value(bytearray(KEY))
    assert len(opened(records(path)[0], KEY)["master"]) == 16


def test_a_check_value_is_that_of_another_library() -> None:
    command = ["openssl", "mac", "-cipher", "AES-256-CBC", "-macopt", f"hexkey:{KEY.hex()}", "CMAC"]
    told = subprocess.run(command, input=bytes(16), capture_output=True, check=True, timeout=60).stdout
    assert check_value(bytearray(KEY)) == told.decode()[:6].upper()


def test_a_line_key_is_for_one_order_and_nothing_is_made_for_another(realm: Realm, tmp_path: Path) -> None:
    first, second = realm.order(1), realm.order(2, name="second.csv")
    with realm.open("factory") as party:
        import_line_key(party, "press-7", first, [component(tmp_path, KEY)])
        with pytest.raises(RefusedError, match="imported for another order"):
            provision_records(party, second, "press-7")
        with pytest.raises(RefusedError, match="has a line key press-7"):
            import_line_key(party, "press-7", second, [component(tmp_path, bytes(31) + b"\1")])
        with pytest.raises(RefusedError, match="has the same octets"):
            import_line_key(party, "press-8", second, [component(tmp_path, KEY)])
        with party.store.read() as tx:
            assert meters.get(tx, bytes.fromhex(title_of(2))) is None
        assert [item.label for item in line_keys(party)] == ["press-7"]


def test_a_destroyed_line_key_wraps_nothing_more(realm: Realm, tmp_path: Path) -> None:
    order = realm.order(1)
    with realm.open("factory") as party:
        import_line_key(party, "press-7", order, [component(tmp_path, KEY)])
        destroy_line_key(party, "press-7")
        with pytest.raises(RefusedError, match="no line key press-7"):
            provision_records(party, order, "press-7")
        with pytest.raises(RefusedError, match="no line key press-7"):
            destroy_line_key(party, "press-7")
        with party.store.read() as tx:
            done = [item.action for item in audit.log(tx, subject="press-7")]
    assert done == ["token-import-key", "token-destroy-key"]


@pytest.mark.parametrize(
    ("text", "mode", "wrong"),
    [("00" * 32, 0o600, "all zeros"), ("11" * 31, 0o600, "no component"), ("11" * 32, 0o644, "read by others")],
)
def test_what_is_no_component_is_refused(realm: Realm, tmp_path: Path, text: str, mode: int, wrong: str) -> None:
    path = component(tmp_path, bytes.fromhex(text), mode=mode)
    with realm.open("factory") as party:
        with pytest.raises((InputError, PolicyError), match=wrong):
            import_line_key(party, "press-7", realm.order(1), [path])
        assert line_keys(party) == []


def test_policy_and_four_eyes_can_forbid_a_line_key(realm: Realm, tmp_path: Path) -> None:
    order, path = realm.order(1), component(tmp_path, KEY)
    set_policy(realm, "factory", four_eyes='["token-import-key", "token-destroy-key"]')
    with realm.open("factory") as party, pytest.raises(ApprovalRequiredError):
        import_line_key(party, "press-7", order, [path])
    set_policy(realm, "factory", import_keys="false")
    with realm.open("factory") as party:
        with pytest.raises(PolicyError, match="forbids to import"):
            import_line_key(party, "press-7", order, [path])
        assert line_keys(party) == []
    set_policy(realm, "factory", import_keys="true", four_eyes='["token-destroy-key"]')
    with realm.open("factory") as party:
        import_line_key(party, "press-7", order, [path])
        with pytest.raises(ApprovalRequiredError):
            destroy_line_key(party, "press-7")
        assert [item.label for item in line_keys(party)] == ["press-7"]


@pytest.mark.parametrize("committed", [False, True])
def test_a_crash_around_the_commit_leaves_a_whole_file_or_none(
    realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, committed: bool
) -> None:
    order = realm.order(1, 2)

    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with realm.open("factory") as party:
        import_line_key(party, "press-7", order, [component(tmp_path, KEY)])
        with monkeypatch.context() as patched:
            if committed:
                patched.setattr(Path, "rename", killed)
            else:
                patched.setattr(packages, "add", killed)
            with pytest.raises(KilledError):
                provision_records(party, order, "press-7")
        with outbox(party):
            left = [path.suffix for path in (party.home / "packages").iterdir()]
        assert left == ([".jsonl"] if committed else [])
        provision_records(party, order, "press-7")
    (path,) = (realm.home("factory") / "packages").iterdir()
    assert [record["serial"] for record in records(path)] == ["1", "2"]
