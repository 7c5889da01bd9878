from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hsmkm.steps.first_lines import FirstLines


@given(st.lists(st.integers(0, 50).map(lambda number: number.to_bytes(8, "big")), max_size=200))
def test_the_first_line_of_each_title_is_told_however_often_the_table_grew(titles: list[bytes]) -> None:
    table, known = FirstLines(slots=4), dict[bytes, int]()
    for line, title in enumerate(titles, 1):
        assert table.note(title, line) == known.setdefault(title, line)
