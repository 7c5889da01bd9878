from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hsmkm.campaign.window import Window
from hsmkm.errors import InputError


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_window_over_midnight_is_open_on_both_sides_of_it() -> None:
    window = Window.parse("22:00-05:00")
    for text, is_open in (
        ("21:59:59", False),
        ("22:00:00", True),
        ("00:00:00", True),
        ("04:59:59", True),
        ("05:00:00", False),
    ):
        assert window.is_open(at(f"2026-03-01T{text}")) is is_open, text
    assert window.opens(at("2026-03-01T05:00:00")) == at("2026-03-01T22:00:00")
    assert window.opens(at("2026-03-01T23:00:00")) == at("2026-03-01T23:00:00")


def test_a_window_within_a_day_opens_again_on_the_next() -> None:
    window = Window.parse("01:30-04:00")
    assert window.is_open(at("2026-03-01T01:30:00"))
    assert window.opens(at("2026-03-01T04:00:00")) == at("2026-03-02T01:30:00")
    assert window.opens(at("2026-03-01T00:00:00")) == at("2026-03-01T01:30:00")


def test_a_time_zone_is_that_of_its_clocks_in_summer_and_winter() -> None:
    window = Window.parse("22:00-05:00 Europe/Berlin")
    assert window.opens(at("2026-01-10T12:00:00")) == at("2026-01-10T21:00:00")
    assert window.opens(at("2026-07-10T12:00:00")) == at("2026-07-10T20:00:00")
    assert str(window) == "22:00-05:00 Europe/Berlin"
    assert Window.parse(str(window)) == window


def test_every_opening_is_open_also_where_the_clocks_change() -> None:
    window = Window.parse("02:30-03:10 Europe/Berlin")
    for day in ("2026-03-28", "2026-03-29", "2026-10-24", "2026-10-25"):
        moment = at(f"{day}T00:00:00")
        for _ in range(48):
            opening = window.opens(moment)
            assert moment <= opening <= moment + timedelta(days=2)
            moment += timedelta(minutes=30)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "22:00",
        "22-05",
        "24:00-05:00",
        "22:60-05:00",
        "22:00-22:00",
        "22:00-05:00 Mars/Base",
        "22:00-05:00 ../x",
        "٢٢:00-05:00",
    ],
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Window.parse(text)
    assert caught.value.hint
