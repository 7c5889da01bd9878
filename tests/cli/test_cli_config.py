"""Settings are checked whole, and results come in the form that was asked for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from hsmkm.steps.setup import set_in_file
from tests.command import Done, failed, results
from tests.realm import HSMKM, Realm

FAULTY = """\
[party]
name = "u"
role = "king"
system_title = "55"
flags = ["abc", "MMM"]
colour = "red"

[token]
profile = "paper"
uri = "http://token"
pin = "1234"

[policy]
kdf_on_host = "yes"
retention_days = 0

[service]
listen = "everywhere"

[concentrator]
aim_url = "http://aim"
kind = "both"
poll_seconds = 0

[concentrator.reading]
attributes = ["1.0.1.8.0.255", "1.0.1.8", "1.0.1.8.0.256", "70000:1.0.1.8.0.255"]
seconds = 0
meter_seconds = "long"
files = -1
colour = "red"

[nonsense]
"""


def run(home: Path, *arguments: str, **environment: str) -> Done:
    command = [str(HSMKM), "--home", str(home), *arguments]
    full = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=full)


def test_config_check_names_every_fault_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "hsmkm.toml").write_text(FAULTY)
    done = run(tmp_path, "config", "check")
    _, faults = failed(done, 1)
    lines = FAULTY.splitlines()
    named = set()
    for fault in faults:
        line, name = fault.removeprefix(f"{tmp_path}/hsmkm.toml:").split(": ")[:2]
        assert lines[int(line) - 1].split(" =")[0] in (name.split(".")[-1], f"[{name}]")
        named.add(name)
    assert named == {
        *("party.role", "party.system_title", "party.flags", "party.colour"),
        *("token.profile", "token.uri", "token.pin"),
        *("policy.kdf_on_host", "policy.retention_days", "service.listen", "nonsense"),
        *(f"concentrator.{key}" for key in ("aim_url", "kind", "poll_seconds")),
        *(f"concentrator.reading.{key}" for key in ("attributes", "seconds", "meter_seconds", "files", "colour")),
    }
    assert "1234" not in done.stderr.replace(str(tmp_path), "")


def test_a_setting_of_the_environment_is_checked_too(realm: Realm) -> None:
    done = realm.cli("utility", "config", "check", environment={"HSMKM_POLICY_PACKAGE_DAYS": "soon"})
    assert "policy.package_days: must be a whole number" in failed(done, 1)[1][0]
    rows = results(realm.cli("utility", "config", "show", environment={"HSMKM_POLICY_PACKAGE_DAYS": "5"}))
    assert {"setting": "policy.package_days", "value": 5} in rows


def test_a_relay_reads_nothing_and_a_client_shows_what_it_reads(realm: Realm) -> None:
    reads = {"HSMKM_CONCENTRATOR_READING_ATTRIBUTES": "1.0.1.8.0.255,3:1.0.2.8.0.255:2"}
    _, faults = failed(realm.cli("concentrator", "config", "check", environment=reads), 1)
    assert [fault.partition(": ")[2] for fault in faults] == [
        "concentrator.kind: must be client where reading.attributes are given: a relay holds no keys to read with"
    ]
    client = reads | {"HSMKM_CONCENTRATOR_KIND": "client"}
    rows = results(realm.cli("concentrator", "config", "show", environment=client))
    shown = {"setting": "concentrator.reading.attributes", "value": ["1.0.1.8.0.255", "3:1.0.2.8.0.255:2"]}
    assert shown in rows


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[party\n", b"= 1\n", b"[party]\n[party]\n"])
def test_settings_that_cannot_be_read_are_a_fault_with_a_place(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hsmkm.toml").write_bytes(content)
    _, faults = failed(run(tmp_path, "config", "check"), 1)
    assert faults[0].startswith(f"{tmp_path}/hsmkm.toml:")


def test_an_unknown_home_says_how_to_make_one(tmp_path: Path) -> None:
    for arguments in (("config", "check"), ("store", "check"), ("meter", "list")):
        done = run(tmp_path / "none", *arguments)
        assert "no hsmkm.toml in" in failed(done, 1)[0]
        assert "init" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--name", "u", "--role", "king", "--system-title", "5554490000000001"), "party.role"),
        (("--name", "u", "--role", "utility", "--system-title", "555449"), "party.system_title"),
        (("--name", "u", "--role", "factory", "--system-title", "5554490000000001", "--flag", "mm"), "party.flags"),
    ],
)
def test_init_with_bad_values_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    _, faults = failed(run(tmp_path / "new", "init", *arguments), 1)
    assert any(expected in fault for fault in faults)
    assert not (tmp_path / "new").exists()


def test_init_where_no_folder_can_be_made_or_one_is_there(tmp_path: Path, realm: Realm) -> None:
    (tmp_path / "file").write_text("")
    values = ("init", "--name", "u", "--role", "utility", "--system-title", "5554490000000001")
    assert "cannot make" in failed(run(tmp_path / "file" / "home", *values), 1)[0]
    before = (realm.home("utility") / "hsmkm.toml").read_bytes()
    assert "hsmkm.toml exists" in failed(run(realm.home("utility"), *values), 1)[0]
    assert (realm.home("utility") / "hsmkm.toml").read_bytes() == before
    assert "is not a party name" in failed(run(tmp_path / "x", "init", "--name", 'a"b', *values[3:]), 1)[0]


def test_results_are_a_table_one_document_or_one_line_each(realm: Realm) -> None:
    forms = {form: run(realm.home("utility"), "--output", form, "party", "list") for form in ("table", "json", "jsonl")}
    document = results(forms["json"])
    assert [json.loads(line) for line in forms["jsonl"].stdout.splitlines()] == document
    header, *rows = forms["table"].stdout.splitlines()
    assert header.split()[:2] == ["party", "role"]
    assert [row.split()[0] for row in rows] == [row["party"] for row in document]
    assert document[0]["party"] == "concentrator"
    assert not any(done.stderr for done in forms.values())


def test_a_listing_without_rows_is_an_empty_list(realm: Realm) -> None:
    assert run(realm.home("utility"), "--output", "json", "meter", "list").stdout.strip() == "[]"
    assert run(realm.home("utility"), "--output", "jsonl", "meter", "list").stdout == ""


def test_a_setting_is_placed_into_its_section(tmp_path: Path) -> None:
    path = tmp_path / "hsmkm.toml"
    path.write_text('[token]\n# why\nuri = ""\n\n[store]\nurl = "x"\n')
    set_in_file(path, "token", "uri", "pkcs11:token=a")
    set_in_file(path, "token", "module", "m.so")
    set_in_file(path, "concentrator", "aim", "u")
    assert path.read_text() == (
        '[token]\nmodule = "m.so"\n# why\nuri = "pkcs11:token=a"\n\n[store]\nurl = "x"\n[concentrator]\naim = "u"\n'
    )
