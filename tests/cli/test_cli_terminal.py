"""What others wrote is shown, and the terminal obeys none of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hsmkm.cli.frame import _table, explain
from hsmkm.errors import Fault, HsmkmError, InputError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTILE = "name\x1b[2J\x07\u202e\ud800"
SHOWN = "name?[2J???"


@pytest.mark.parametrize(
    "show",
    [
        pytest.param(lambda: explain(HsmkmError(HOSTILE, HOSTILE)), id="error and hint"),
        pytest.param(lambda: explain(InputError("no", [Fault("package", 0, 0, HOSTILE)])), id="fault"),
        pytest.param(lambda: explain(RefusedError("no", [HOSTILE])), id="reason"),
        pytest.param(lambda: _table([{"subject": HOSTILE}], ("subject",)), id="table"),
    ],
)
def test_a_text_of_a_peer_moves_no_cursor(show: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    show()
    written = "".join(capsys.readouterr())
    assert SHOWN in written
    assert not set(written) & set("\x1b\x07\u202e\ud800")


def test_what_can_be_printed_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    explain(HsmkmError("Zähler „Nord“ · 10 µs", "é…"))
    assert "Zähler „Nord“ · 10 µs" in capsys.readouterr().err
