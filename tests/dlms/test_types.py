from __future__ import annotations

import pytest

from hsmkm.dlms.types import LogicalName, SecuritySuite, SystemTitle
from hsmkm.errors import InputError


def test_a_system_title_is_read_and_shown_as_16_capital_digits() -> None:
    title = SystemTitle.parse("4d4d4d0000bc614e")
    assert str(title) == "4D4D4D0000BC614E"
    assert title.flag == "MMM"


def test_a_serial_number_follows_the_flag_id_big_endian() -> None:
    assert SystemTitle.from_serial("MMM", 12_345_678) == SystemTitle.parse("4D4D4D0000BC614E")


@pytest.mark.parametrize("text", ["", "4D4D4D0000BC61", "4D4D4D0000BC614G", "4D4D4D0000BC614E\n", "4D 4D4D0000BC614"])
def test_other_text_is_no_system_title(text: str) -> None:
    with pytest.raises(InputError):
        SystemTitle.parse(text)


@pytest.mark.parametrize(("flag", "serial"), [("mmm", 1), ("MM", 1), ("MMÄ", 1), ("MMM", -1), ("MMM", 1 << 40)])
def test_flag_id_and_serial_number_are_checked(flag: str, serial: int) -> None:
    with pytest.raises(InputError):
        SystemTitle.from_serial(flag, serial)


def test_a_logical_name_is_six_numbers() -> None:
    assert str(LogicalName.parse("0.0.43.0.0.255")) == "0.0.43.0.0.255"
    for text in ("0.0.43.0.0", "0.0.43.0.0.256", "0.0.43.0.0.x", "٠.0.43.0.0.255"):
        with pytest.raises(InputError):
            LogicalName.parse(text)


def test_only_suite_2_has_keys_of_32_octets() -> None:
    assert [suite.key_octets for suite in SecuritySuite] == [16, 16, 32]
    assert [suite.wrapped_octets for suite in SecuritySuite] == [24, 24, 40]
