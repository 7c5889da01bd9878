from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.config import load_model
from hsmkm.errors import InputError
from hsmkm.meter_model import MeterModel
from hsmkm.steps.order import parse_order, read_order
from tests.memory import peak_of, read_through

HEADER = "system_title,serial,model,suite\n"
GOOD = HEADER + "4D4D4D0000BC614E,12345678,virtual,0\n"


def faults(text: str | bytes) -> list[str]:
    octets = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(InputError) as caught:
        parse_order("order.csv", octets, load_model)
    assert caught.value.faults
    return [str(fault) for fault in caught.value.faults]


def test_a_row_with_a_system_title_names_a_meter() -> None:
    (meter,) = parse_order("order.csv", GOOD.encode(), load_model).meters
    assert (str(meter.system_title), meter.serial, meter.model, meter.suite) == (
        "4D4D4D0000BC614E",
        "12345678",
        "virtual",
        0,
    )


def test_flag_and_serial_make_the_green_books_system_title() -> None:
    (meter,) = parse_order("o", b"flag;serial;model;suite\nMMM;12345678;virtual;0\n", load_model).meters
    assert str(meter.system_title) == "4D4D4D0000BC614E"


def test_a_byte_order_mark_and_crlf_are_no_fault() -> None:
    octets = b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()
    assert len(parse_order("o", octets, load_model).meters) == 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("4D4D4D0000BC61,,virtual,0", "order.csv:2:1: system_title: '4D4D4D0000BC61' is not 16 hex digits"),
        ("4.45E+15,,virtual,0", "order.csv:2:1: system_title: '4.45E+15' was changed by a spreadsheet"),
        ("0000000000BC614E,,virtual,0", "order.csv:2:1: system_title: 0000000000BC614E does not begin with a FLAG id"),
        ("4D4D4D0000BC614E,,nonesuch,0", "order.csv:2:3: model: unknown meter model 'nonesuch'"),
        ("4D4D4D0000BC614E,,../virtual,0", "order.csv:2:3: model: '../virtual' is not a model name"),
        ("4D4D4D0000BC614E,,virtual,7", "order.csv:2:4: suite: '7' is not a security suite"),
        ("4D4D4D0000BC614E,,virtual,2", "order.csv:2:4: suite: model virtual has no security suite 2"),
        ("4D4D4D0000BC614E,virtual,0", "order.csv:2: 3 cells where 4 are named"),
        ("5858580000BC614E,,virtual,0", "order.csv:2:1: system_title: FLAG id XXX is not one of model virtual"),
        (",,virtual,0", "order.csv:2:2: serial: is empty, and so is system_title"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_column(row: str, expected: str) -> None:
    assert any(fault.startswith(expected) for fault in faults(HEADER + row + "\n")), faults(HEADER + row + "\n")


@pytest.mark.parametrize("serial", ["1.23457E+11", "12345678.0", "12,345,678", "12 345 678"])
def test_a_serial_number_mangled_by_a_spreadsheet_is_told_as_such(serial: str) -> None:
    (found,) = faults(f"flag;serial;model;suite\nMMM;{serial};virtual;0\n")
    assert found.startswith("order.csv:2:2: serial:")
    assert "changed by a spreadsheet" in found


def test_every_fault_of_the_file_is_listed_at_once() -> None:
    rows = "4D4D4D0000BC614E,,virtual,0\nXX,,virtual,0\n4D4D4D0000BC614E,,virtual,0\n4D4D4D0000BC614F,,virtual,9\n"
    found = faults(HEADER + rows)
    assert [line.split(":")[1] for line in found] == ["3", "4", "5"]
    assert "4D4D4D0000BC614E stands on line 2 already" in found[1]


def test_of_a_file_that_is_wrong_in_every_line_the_first_thousand_faults_are_named_and_all_counted() -> None:
    octets = (HEADER + "XX,,virtual,0\n" * 2500).encode()
    with pytest.raises(InputError, match=r"has 2500 fault\(s\), the first 1000 of which are named") as caught:
        parse_order("order.csv", octets, load_model)
    assert [caught.value.faults[place].line for place in (0, -1)] == [2, 1001]


def test_a_wrong_encoding_is_named_with_its_place() -> None:
    assert faults(GOOD.encode() + b"4D4D4D0000BC614F,caf\xe9,virtual,0\n") == [
        "order.csv:3:21: not UTF-8: export the order as CSV UTF-8"
    ]
    assert "UTF-8" in faults(GOOD.encode("utf-16"))[0]


@pytest.mark.parametrize("text", ["", "\n\n", HEADER, "model\n", "system_title,model,suite,colour\n", "suite,suite\n"])
def test_an_order_without_meters_or_columns_is_refused(text: str) -> None:
    assert faults(text)


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read order"):
        read_order(tmp_path / "none.csv", load_model)


def test_an_order_that_never_ends_is_read_no_further_than_an_order_may_be_long() -> None:
    with pytest.raises(InputError, match=r"/dev/zero is above \d+ octets"):
        read_order(Path("/dev/zero"), load_model)


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: (HEADER + text).encode()))
def test_any_octets_are_an_order_or_an_input_error(octets: bytes) -> None:
    with contextlib.suppress(InputError):
        assert parse_order("o", octets, load_model).meters


def test_the_model_is_asked_once_for_each_name() -> None:
    asked: list[str] = []

    def model_of(name: str) -> MeterModel:
        asked.append(name)
        return load_model(name)

    parse_order("o", (GOOD + "4D4D4D0000BC614F,,virtual,0\n").encode(), model_of)
    assert asked == ["virtual"]


def test_a_title_that_stands_twice_is_found_however_far_apart_and_whatever_else_is_wrong() -> None:
    rows = [f"{0x4D4D4D0000000000 + number * 7:016X},,virtual,0\n" for number in range(5000)]
    assert faults(HEADER + rows[4711].replace("virtual", "nonesuch") + "".join(rows))[-1] == (
        f"order.csv:4714:1: system_title: {rows[4711][:16]} stands on line 2 already"
    )


def test_the_meters_of_an_order_can_be_read_again_and_again() -> None:
    meters = parse_order("o", (GOOD + "4D4D4D0000BC614F,,virtual,0\n").encode(), load_model).meters
    assert [meter.line for meter in meters] == [meter.line for meter in meters] == [2, 3]


def test_an_order_is_checked_and_read_in_some_octets_a_meter_beside_its_own() -> None:
    small, large = (HEADER.encode() + b"".join(map(row_of, range(count))) for count in (2_000, 20_000))
    checked = [peak_of(lambda: parse_order("o", octets, load_model)) for octets in (small, large)]  # noqa: B023 - called at once
    assert (checked[1] - checked[0]) / 18_000 < 60
    orders = [parse_order("o", octets, load_model) for octets in (small, large)]
    read = [peak_of(lambda: read_through(order.meters)) for order in orders]  # noqa: B023 - called at once
    assert (read[1] - read[0]) / 18_000 < 1


def row_of(number: int) -> bytes:
    return b"%016X,%d,virtual,0\n" % (0x4D4D4D0000000000 + number, number)
