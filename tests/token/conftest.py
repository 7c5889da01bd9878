from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The functions that workers run, importable here and in them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("token_work")
