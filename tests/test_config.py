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


@pytest.mark.parametrize(
    "url", ["http://aim:8443", "https://aim:99999", "https://[::1", "https://aim:port", "https://"]
)
def test_what_is_no_address_of_an_aim_is_a_fault_of_its_line(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError) as caught:
        load_settings(write(tmp_path, f'{GOOD}\n[concentrator]\naim_url = "{url}"\n'), {})
    (fault,) = caught.value.faults
    assert fault.text == "concentrator.aim_url: must be https://HOST:PORT"


@pytest.mark.parametrize(
    ("section", "key", "most"),
    [
        ("token", "answer_seconds", 86_400),
        ("policy", "max_counter_jump", 4_294_967_295),
        ("policy", "retention_days", 36_500),
        ("policy", "package_days", 366),
        ("policy", "approval_hours", 8_784),
        ("dlms", "timeout_seconds", 86_400),
        ("dlms", "counter_block", 65_536),
        ("concentrator", "poll_seconds", 86_400),
        ("concentrator.reading", "seconds", 31_622_400),
        ("workers", "batch", 10_000),
    ],
)
def test_a_number_above_its_bound_is_a_fault_of_its_line(tmp_path: Path, section: str, key: str, most: int) -> None:
    path = write(tmp_path, f"{GOOD}[{section}]\n{key} = {most + 1}\n")
    with pytest.raises(InputError) as caught:
        load_settings(path, {})
    (fault,) = caught.value.faults
    assert fault.text.startswith(f"{section}.{key}: must be ")
    assert fault.text.endswith(f" to {most}")
    assert fault.line == len(GOOD.splitlines()) + 2
    load_settings(write(tmp_path, f"{GOOD}[{section}]\n{key} = {most}\n"), {})


def test_a_file_that_is_not_toml_is_named_with_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_settings(write(tmp_path, GOOD + "x = \n"), {})
    assert caught.value.faults[0].line == 5


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "a = " + "9" * 5000], ids=["nested", "a number without end"])
def test_what_the_parser_of_toml_dies_of_is_named_as_a_fault(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="is not TOML"):
        load_settings(write(tmp_path, text), {})


def test_a_number_without_end_in_the_environment_is_a_fault(tmp_path: Path) -> None:
    environment = {"HSMKM_DLMS_TIMEOUT_SECONDS": "9" * 5000, "HSMKM_PARTY_SUITES": "9" * 5000}
    with pytest.raises(InputError) as caught:
        load_settings(write(tmp_path, GOOD), environment)
    assert len(caught.value.faults) == 2


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


def model(path: Path, text: str) -> Path:
    made = path / "m.toml"
    made.write_text('flags = ["ABC"]\n' + text)
    return made


def model_faults(path: Path, text: str) -> list[tuple[int, str]]:
    with pytest.raises(InputError) as caught:
        read_model(model(path, text))
    return [(fault.line, fault.text.split(":")[0]) for fault in caught.value.faults]


def test_a_model_says_how_its_meters_are_spoken_to(tmp_path: Path) -> None:
    text = (
        "suites = [1]\n[authentication]\nmechanism = 3\nallow_weak_digests = true\nsecret_octets = 32\n"
        '[security_setup]\nversion = 0\n[protection]\npolicy = 3\nform = "general-ded"\n'
    )
    made = read_model(model(tmp_path, text))
    assert (made.authentication.mechanism, made.authentication.secret_octets) == (3, 32)
    assert (made.protection.policy, made.protection.form) == (3, "general-ded")


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("[authentication]\nmechanism = 2\n", [(3, "authentication.mechanism")]),
        ("[authentication]\nmechanism = 3\n", [(3, "authentication.mechanism")]),
        ("[authentication]\nmechanism = 4\nallow_weak_digests = false\n", [(3, "authentication.mechanism")]),
        ("[authentication]\nmechanism = 7\n", [(3, "authentication.mechanism")]),
        ("suites = [0, 1]\n[authentication]\nmechanism = 7\n", [(4, "authentication.mechanism")]),
        ("[authentication]\nmechanism = 0\n", [(3, "authentication.mechanism")]),
        ("[authentication]\nmechanism = 6\nsecret_octets = 13\n", [(4, "authentication.secret_octets")]),
        ("[authentication]\nmechanism = 6\nsecret_octets = 72\n", [(4, "authentication.secret_octets")]),
        ("[security_setup]\nversion = 2\n", [(3, "security_setup.version")]),
        ("[security_setup]\nversion = 0\n[protection]\npolicy = 4\n", [(5, "protection.policy")]),
        ("[protection]\npolicy = 3\n", [(3, "protection.policy")]),
        ("[protection]\npolicy = 0x6c0\n", [(3, "protection.policy")]),
        ("[protection]\npolicy = 0x90\n", [(3, "protection.policy")]),
        ('[protection]\npolicy = "all"\n', [(3, "protection.policy")]),
        ("[protection]\npolicy = -4\n", [(3, "protection.policy")]),
        ('[protection]\nform = "general-signing"\n', [(3, "protection.form")]),
        ('[key_agreement]\nalgorithm_id = "60857405080300"\n', [(3, "key_agreement.algorithm_id")]),
        ('[key_agreement]\nalgorithm_id = "key"\n', [(3, "key_agreement.algorithm_id")]),
        ('[key_agreement]\nway_back_key = "identified"\n', [(3, "key_agreement.way_back_key")]),
    ],
)
def test_what_a_model_cannot_mean_is_a_fault_of_its_line(
    tmp_path: Path, text: str, faults: list[tuple[int, str]]
) -> None:
    assert model_faults(tmp_path, text) == faults


TWO = """association_name = "management"
[security_setup]
logical_name = "0.0.43.0.0.255"
[counter]
logical_name = "0.0.43.1.0.255"
reset_on_key_change = true
[associations.reading]
addressing.client_sap = 2
[associations.reading.security_setup]
number = 1
[associations.reading.authentication]
mechanism = 6
"""


def test_an_association_is_as_the_first_one_but_for_what_its_table_says(tmp_path: Path) -> None:
    made = read_model(model(tmp_path, TWO))
    assert made.associations == ("management", "reading")
    first, reading = made.association(), made.association("reading")
    assert (first.place, reading.place) == ((0, 1), (1, 2))
    assert (first.authentication.mechanism, reading.authentication.mechanism) == (5, 6)
    assert reading.counter.reset_on_key_change
    names = [(one.security_setup.logical_name, one.counter.logical_name) for one in (first, reading)]
    assert names == [("0.0.43.0.0.255", "0.0.43.1.0.255"), ("0.0.43.0.1.255", "0.0.43.1.1.255")]


def test_an_association_that_the_model_lacks_is_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no association 'writing'") as caught:
        read_model(model(tmp_path, TWO)).association("writing")
    assert "management, reading" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ('association_name = "Management 1"\n', [(2, "association_name")]),
        (
            "[associations.Reading]\naddressing.client_sap = 2\nsecurity_setup.number = 1\n",
            [(2, "associations.Reading.association_name")],
        ),
        (
            "[associations.management]\naddressing.client_sap = 2\nsecurity_setup.number = 1\n",
            [(2, "associations.management.association_name")],
        ),
        (
            "[associations.reading]\naddressing.client_sap = 2\n",
            [(2, "associations.reading.security_setup.logical_name")],
        ),
        ("[associations.reading]\n", [(2, "associations.reading.addressing.client_sap")]),
        (
            (
                "[associations.a]\nsecurity_setup.number = 1\n[associations.a.addressing]\nclient_sap = 2\n"
                "[associations.b]\nsecurity_setup.number = 1\n"
                "security_setup.logical_name = '0.0.43.0.2.255'\naddressing.client_sap = 2\n"
            ),
            [(6, "associations.b.addressing.client_sap")],
        ),
        ("[associations.reading.security_setup]\nnumber = 256\n", [(3, "associations.reading.security_setup.number")]),
        ("[associations.reading.security_setup]\nnumber = -1\n", [(3, "associations.reading.security_setup.number")]),
        ("[associations.reading.security_setup]\nnumber = 1.5\n", [(3, "associations.reading.security_setup.number")]),
        (
            "[addressing]\nclient_sap = 65536\nserver_sap = -1\n",
            [(3, "addressing.client_sap"), (4, "addressing.server_sap")],
        ),
        ("[associations.r]\n[associations.r.addressing]\nport = 2\n", [(4, "associations.r.addressing.port")]),
        (
            '[associations.r]\nflags = ["XYZ"]\naddressing.client_sap = 2\nsecurity_setup.number = 1\n',
            [(3, "associations.r.flags")],
        ),
        ('associations = "reading"\n', [(2, "associations")]),
        ("[associations]\nreading = 1\n", [(3, "associations.reading")]),
        (
            "[associations.r]\nsecurity_setup.number = 1\naddressing.client_sap = 2\nprotection.policy = 3\n",
            [(2, "associations.r.protection.policy")],
        ),
        (
            "[authentication]\nmechanism = 7\n[associations.r]\nsecurity_setup.number = 1\naddressing.client_sap = 2\n",
            [(3, "authentication.mechanism")],
        ),
        (
            '[addressing]\nclient_sap = "1"\n[associations.r.addressing]\nclient_sap = "2"\n',
            [(3, "addressing.client_sap"), (5, "associations.r.addressing.client_sap")],
        ),
    ],
)
def test_what_an_association_cannot_mean_is_a_fault_of_its_line(
    tmp_path: Path, text: str, faults: list[tuple[int, str]]
) -> None:
    assert model_faults(tmp_path, text) == faults


@pytest.mark.parametrize("arc", ["", "1.3.6.1.4.1.32473.5", "2.999.1"])
def test_an_arc_is_an_object_identifier(tmp_path: Path, arc: str) -> None:
    assert load_settings(write(tmp_path, GOOD + f'[pki]\npolicy_arc = "{arc}"\n'), {}).pki.policy_arc == arc


@pytest.mark.parametrize(
    "arc", ["1", "1.40.1", "3.1.1", "1.3.06", "1.3.", "2.25.29180419528223544606359186039743759980"]
)
def test_an_arc_that_not_every_decoder_reads_is_a_fault(tmp_path: Path, arc: str) -> None:
    with pytest.raises(InputError) as caught:
        load_settings(write(tmp_path, GOOD + f'[pki]\npolicy_arc = "{arc}"\n'), {})
    assert [fault.line for fault in caught.value.faults] == [6]
