"""A GUEK agreed on with the independent meter: both AlgorithmIDs of the field, a refusal, a lost answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hsmkm.link.client import MeterRefusedError
from hsmkm.steps.agree import renew_by_agreement
from hsmkm.steps.communicate import read
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party
from hsmkm.steps.resolve import resolve
from tests.field import ENERGY, key_states
from tests.interop.line import options, signing
from tests.interop.meter_relay import Dropped, relaying
from tests.interop.station import stranger
from tests.mechanisms import TITLE, Line, moved, set_up
from tests.realm import Realm

pytestmark = pytest.mark.slow

StartMeter = Callable[..., int]
WAY_BACK = "[key_agreement]\nway_back = true\n"


def energy(party: Party) -> object:
    (reading,) = read(party, TITLE, (ENERGY,))
    return reading.data.value


def lose(_number: int, _answer: bytes) -> bytes:
    raise Dropped


@pytest.fixture
def line(realm: Realm) -> Line:
    """A factory with a model of suite 1 that has a way back, and a meter with certified keys for signatures."""
    return set_up(realm, 5, 1, WAY_BACK)


@pytest.fixture
def meter_options(line: Line, tmp_path: Path) -> tuple[str, ...]:
    return (*options(line), *signing(line, tmp_path), "--state", str(tmp_path / "state.json"))


def held(tmp_path: Path) -> dict[str, str]:
    """The keys of the meter by key_id, from its state file."""
    found: dict[str, str] = json.loads((tmp_path / "state.json").read_text())["keys"]
    return found


@pytest.mark.parametrize("activate", ["now", "after-response", "release"])
def test_a_guek_is_agreed_on_under_the_models_algorithm_id(
    line: Line, meter_options: tuple[str, ...], start_meter: StartMeter, tmp_path: Path, activate: str
) -> None:
    port = start_meter(*meter_options, "--activate", activate)
    with line.realm.open("factory") as party:
        assert inject(party, TITLE, f"127.0.0.1:{port}").state == "active"
        before = held(tmp_path)
        (outcome,) = renew_by_agreement(party, [TITLE], prove_refusal=True)
        assert (outcome.state, outcome.generation) == ("active", 2)
        assert energy(party) == 123_456
    after = held(tmp_path)
    assert {key_id for key_id in after if after[key_id] != before[key_id]} == {"0"}
    keys = {role: bytes.fromhex(before[number]) for role, number in (("guek", "0"), ("gak", "2"))}
    with pytest.raises(MeterRefusedError), stranger(port, TITLE, keys, 1):
        pass


def test_a_guek_is_agreed_on_under_the_other_algorithm_id(
    line: Line, meter_options: tuple[str, ...], start_other_meter: StartMeter
) -> None:
    port = start_other_meter(*meter_options)
    with line.realm.open("factory") as party:
        assert inject(party, TITLE, f"127.0.0.1:{port}").state == "active"
        (outcome,) = renew_by_agreement(party, [TITLE], prove_refusal=True)
        assert (outcome.state, outcome.generation) == ("active", 3)
        assert energy(party) == 123_456
        assert key_states(party, 1) == [(1, "deactivated"), (3, "active")]


def test_a_meter_that_does_not_know_our_key_refuses_and_keeps_what_it_had(
    line: Line, start_meter: StartMeter, tmp_path: Path
) -> None:
    port = start_meter(*options(line), *signing(line, tmp_path)[:2])
    with line.realm.open("factory") as party:
        assert inject(party, TITLE, f"127.0.0.1:{port}").state == "active"
        assert renew_by_agreement(party, [TITLE])[0].state == "unknown"
        assert resolve(party, TITLE, go_on=False).state == "abandoned"
        assert energy(party) == 123_456
        assert key_states(party, 1) == [(1, "active")]


def test_an_answer_that_is_lost_leaves_a_doubt_that_names_the_way_back(
    line: Line, meter_options: tuple[str, ...], start_meter: StartMeter, tmp_path: Path
) -> None:
    port = start_meter(*meter_options, "--activate", "now")
    with line.realm.open("factory") as party:
        assert inject(party, TITLE, f"127.0.0.1:{port}").state == "active"
    before = held(tmp_path)
    with relaying(port, lose) as relay:
        with line.realm.open("factory") as party:
            moved(party, f"127.0.0.1:{relay.port}")
        done = line.realm.cli("factory", "renew", "--by", "key-agreement", TITLE)
        assert relay.transfers == 1
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout)[0]["state"] == "unknown"
    assert held(tmp_path)["0"] != before["0"]
    rows = line.realm.rows("factory", "meter", "show", TITLE)
    assert [row["state"] for row in rows if row["kind"] == "key set"] == ["active"]
    assert [row["state"] for row in rows if row["kind"] == "renewal"][-1] == "unknown"
    (way,) = [row["detail"] for row in rows if row["kind"] == "way back"]
    assert f"hsmkm resolve {TITLE}" in way
    assert "general-ciphering" in way
    with line.realm.open("factory") as party:
        moved(party, f"127.0.0.1:{port}")
    done = line.realm.cli("factory", "resolve", "--no-renew", TITLE)
    assert done.returncode == 7
    assert "stay in doubt" in done.stderr
