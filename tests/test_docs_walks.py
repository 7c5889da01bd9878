"""The walk-throughs of enrolment and ceremony: each command is run, and prints what the page shows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes

from hsmkm.pki.certificates import read_certificates
from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import load, save_to
from hsmkm.store import meters
from scripts import readme
from tests import mechanisms, third
from tests.field import state_path, wait_until
from tests.realm import copy_realm, title_of
from tests.steps.test_steps_agree import injected as agreeing
from tests.steps.test_steps_enrol import TITLE, injected
from tests.street import ONE, OTHER, add_newcomer, open_street

if TYPE_CHECKING:
    from tests.field import Field
    from tests.realm import Realm

DOCS = Path(__file__).resolve().parents[1] / "docs"


def walk(page: str, variables: dict[str, str], folder: Path) -> list[tuple[readme.Command, readme.Command, int]]:
    """Run a page's commands with these variables set; give each as shown, as printed, and its exit code."""
    shown = [command for block in readme.blocks((DOCS / page).read_text(encoding="utf-8")) for command in block]
    first = readme.Command("; ".join(f"{name}={value}" for name, value in variables.items()), "")
    done = list(readme.run([first, *shown], folder))[1:]
    assert len(done) == len(shown)
    return [
        (one, readme.Command(two.text, _named(two.output, variables)), code)
        for one, (two, code) in zip(shown, done, strict=True)
    ]


def _named(output: str, variables: dict[str, str]) -> str:
    for name, value in variables.items():
        output = output.replace(value, f"${name}")
    return output


def differences(done: Sequence[tuple[readme.Command, readme.Command, int]]) -> list[str]:
    wrong = [one.text for one, _, code in done if code != 0]
    return wrong + [
        "\n".join([one.text, *readme.comparable(two.output)])
        for one, two, _ in done
        if readme.comparable(one.output) != readme.comparable(two.output)
    ]


@pytest.mark.slow
def test_the_enrolment_goes_as_its_page_says(realm: Realm, tmp_path: Path) -> None:
    with injected(realm, 1):
        done = walk("enrolment.md", {"LAB": str(realm.folder), "METER": TITLE}, tmp_path)
    assert differences(done) == []


@pytest.mark.slow
def test_a_lost_answer_is_led_back_as_its_page_says(realm: Realm, tmp_path: Path) -> None:
    line = agreeing(realm, 1)
    with line.meter(MeterSettings(fault=Fault.DROP_AFTER)) as address:
        with realm.open("factory") as party:
            mechanisms.moved(party, address)
        places = {"LAB": str(realm.folder), "METER": mechanisms.TITLE, "PLACE": address}
        done = walk("keys.md", places, tmp_path)
    assert differences(done) == []


@pytest.mark.slow
def test_the_concentrator_works_as_its_page_says(field: Field, tmp_path: Path) -> None:
    ((title, place),) = field.meters(1)
    variables = {"LAB": str(field.realm.folder), "METER": title, "PLACE": place}
    assert differences(walk("concentrator.md", variables, tmp_path)) == []


@pytest.mark.slow
def test_groups_go_as_their_page_says(delivered_template: Realm, tmp_path: Path) -> None:
    realm = copy_realm(delivered_template, tmp_path / "realm")
    titles = [title_of(serial) for serial in (1, 2)]
    paths = [state_path(realm, serial) for serial in (1, 2)]
    with serving([Meter(load(path), save=save_to(path)) for path in paths]) as ports:
        with realm.open("factory") as party, party.store.begin("moved", "meters", {}) as tx:
            for title, port in zip(titles, ports, strict=True):
                meters.update(tx, replace(meters.find(tx, title), address=f"127.0.0.1:{port}"))
        variables = {"LAB": str(realm.folder), "METER": titles[0], "OTHER": titles[1], "PORT": str(ports[0])}
        done = walk("groups.md", variables, tmp_path)
        assert differences(done) == []
        wait_until(lambda: load(paths[0]).message == b"hello")
    assert load(paths[1]).message == b""


@pytest.mark.slow
def test_campaigns_go_as_their_page_says(delivered_template: Realm, tmp_path: Path) -> None:
    realm = copy_realm(delivered_template, tmp_path / "realm")
    with open_street(realm) as street:
        variables = {"LAB": str(realm.folder), "METER": ONE, "OTHER": OTHER}
        assert differences(walk("campaigns.md", variables, tmp_path)) == []
        assert street.waiting() == []


@pytest.mark.slow
def test_a_third_party_reaches_a_meter_as_its_page_says(realm: Realm, tmp_path: Path) -> None:
    with third.delivered(realm, 1):
        done = walk("third-party.md", {"LAB": str(realm.folder), "METER": mechanisms.TITLE}, tmp_path)
    assert differences(done) == []
    assert all(b"\x06\x00\x01\xe2\x40" not in path.read_bytes() for path in realm.folder.glob("*.apdu"))


@pytest.mark.slow
def test_the_ceremony_goes_as_its_page_says_and_leaves_a_transcript(tmp_path: Path) -> None:
    folder = tmp_path / "ceremony"
    folder.mkdir()
    assert differences(walk("ceremony.md", {"CEREMONY": str(folder)}, tmp_path)) == []
    text = (folder / "transcript.txt").read_text(encoding="utf-8")
    root = read_certificates(folder / "authority" / "certificates" / "root.pem")[0]
    squeezed = text.replace(" ", "")
    assert root.fingerprint(hashes.SHA256()).hex().upper() in squeezed
    assert f"{root.serial_number:X}" in text
    assert "CKA_NEVER_EXTRACTABLE  true" in text
    assert (folder / "authority" / "token" / "pin").read_text(encoding="utf-8").strip() not in text
    assert hashlib.sha256(text.encode()).hexdigest() in _audited(folder / "authority")


def _audited(home: Path) -> str:
    from hsmkm.steps.party import open_listing  # noqa: PLC0415 - the store is opened here only
    from hsmkm.store import audit  # noqa: PLC0415 - as above

    with open_listing(home) as store, store.read() as tx:
        return json.dumps([item.detail for item in audit.log(tx)])


@pytest.mark.slow
def test_a_pki_is_set_up_renewed_and_revoked_as_its_page_says(tmp_path: Path) -> None:
    blocks = re.findall(r"^```\n(.*?)^```", (DOCS / "pki.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shown = [line for block in blocks for line in block.splitlines() if line.startswith(("hsmkm ", "openssl "))]
    assert len(shown) >= 20
    parties = {"factory": "4641430000000002", "utility": "5554490000000004"}
    first = [
        command
        for name, title in parties.items()
        for command in (
            f"hsmkm --home {name} init --name {name} --role {name} --system-title {title}",
            f"hsmkm --home {name} token init",
        )
    ]
    at = next(place for place, line in enumerate(shown) if "pki install" in line) + 1
    utility = ["hsmkm --home utility pki trust pki/root.pem", "hsmkm --home utility pki update pki"]
    script = "\n".join([*first, *shown[:at], *utility, *shown[at:]])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Certificate request self-signature verify OK" in done.stdout + done.stderr
    assert "certificates/factory/tls.pem: OK" in done.stdout


def test_a_line_that_opens_no_packages_gets_records_as_its_page_says(realm: Realm, tmp_path: Path) -> None:
    realm.order(1, 2)
    done = walk("provision-line.md", {"LAB": str(realm.folder)}, tmp_path)
    check = re.compile(r"\b[0-9A-F]{6}\b")
    masked = [
        [replace(each, output=check.sub("<check>", each.output)) for each in (shown, printed)]
        for shown, printed, _ in done
    ]
    assert differences([(shown, printed, done[at][2]) for at, (shown, printed) in enumerate(masked)]) == []


@pytest.mark.slow
def test_four_eyes_go_as_their_page_says(realm: Realm, tmp_path: Path) -> None:
    realm.order(1, 2)
    assert differences(walk("four-eyes.md", {"LAB": str(realm.folder)}, tmp_path)) == []


@pytest.mark.slow
def test_a_home_is_kept_rotated_and_moved_as_its_page_says(delivered_template: Realm, tmp_path: Path) -> None:
    realm = copy_realm(delivered_template, tmp_path / "realm")
    (tmp_path / "work").mkdir()
    variables = {"LAB": str(realm.folder), "WORK": str(tmp_path / "work")}
    assert differences(walk("backup.md", variables, tmp_path)) == []


@pytest.mark.slow
def test_the_life_of_keys_goes_as_its_page_says(delivered_template: Realm, tmp_path: Path) -> None:
    realm = copy_realm(delivered_template, tmp_path / "realm")
    add_newcomer(realm)
    titles = [title_of(serial) for serial in (1, 2)]
    paths = [state_path(realm, serial) for serial in (1, 2)]
    with serving([Meter(load(path), save=save_to(path)) for path in paths]) as ports:
        with realm.open("factory") as party, party.store.begin("moved", "meters", {}) as tx:
            for title, port in zip(titles, ports, strict=True):
                meters.update(tx, replace(meters.find(tx, title), address=f"127.0.0.1:{port}"))
        variables = {"LAB": str(realm.folder), "METER": titles[0], "OTHER": titles[1]}
        done = walk("life-cycle.md", variables, tmp_path)
    assert differences(done) == []
