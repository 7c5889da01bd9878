from __future__ import annotations

from pathlib import Path

import pytest

from hsmkm.config import load_model, load_settings, read_model
from hsmkm.errors import InputError

GOOD = '[party]\nname = "u"\nrole = "utility"\nsystem_title = "5554490000000001"\n'


def write(home: Path, text: str) -> Path:
    (home / "hsmkm.toml").write_text(text)
    return home


def test_settings_have_defaults_for_all_but_the_party(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, GOOD), {})
    assert settings.token.pin == "file:token/pin"
    assert settings.store_url == f"sqlite:{tmp_path}/store.db"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    text = GOOD + "[policy]\nkdf_on_host = true\n[dlms]\ntimeout_seconds = 3\n"
    environment = {"HSMKM_POLICY_KDF_ON_HOST": "false", "HSMKM_DLMS_TIMEOUT_SECONDS": "7"}
    settings = load_settings(write(tmp_path, text), environment)
    assert (settings.policy.kdf_on_host, settings.dlms.timeout_seconds) == (False, 7)


def test_every_fault_is_named_with_its_line(tmp_path: Path) -> None:
    text = (
        '[party]\nname = "u"\nrole = "king"\nsystem_title = "55"\ncolour = "red"\n'
        '[policy]\nkdf_on_host = "yes"\nmax_counter_jump = 0\n[nonsense]\n'
    )
    with pytest.raises(InputError) as caught:
        load_settings(write(tmp_path, text), {})
    found = [(fault.line, fault.text.split(":")[0]) for fault in caught.value.faults]
    assert (5, "party.colour") in found
    assert (7, "policy.kdf_on_host") in found


def test_values_that_mean_nothing_are_faults(tmp_path: Path) -> None:
    text = GOOD.replace("utility", "king").replace("5554490000000001", "55")
    with pytest.raises(InputError) as caught:
        load_settings(write(tmp_path, text), {})
    assert [fault.line for fault in caught.value.faults] == [3, 4]


def test_a_file_that_is_not_toml_is_named_with_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_settings(write(tmp_path, GOOD + "x = \n"), {})
    assert caught.value.faults[0].line == 5


def test_a_home_without_settings_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_settings(tmp_path)
    assert "init" in caught.value.hint


def test_a_model_of_the_home_is_taken_before_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "virtual.toml").write_text('flags = ["ABC"]\n')
    assert load_model("virtual", tmp_path).flags == ("ABC",)
    assert load_model("virtual").flags == ("MMM",)


def test_a_models_faults_are_named_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('flags = ["abc"]\n[key_transfer]\norder = ["guek"]\neffective = "soon"\n')
    with pytest.raises(InputError) as caught:
        read_model(path)
    assert [fault.line for fault in caught.value.faults] == [1, 3, 4]


def test_suites_come_as_a_list_from_the_file_and_with_commas_from_the_environment(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, GOOD), {}).party.suites == (0, 1, 2)
    assert load_settings(write(tmp_path, GOOD + "suites = [0, 1]\n"), {}).party.suites == (0, 1)
    assert load_settings(tmp_path, {"HSMKM_PARTY_SUITES": "0, 2"}).party.suites == (0, 2)
    for wrong in ("3", "two", "-1"):
        with pytest.raises(InputError) as caught:
            load_settings(tmp_path, {"HSMKM_PARTY_SUITES": wrong})
        assert "party.suites" in caught.value.faults[0].text
