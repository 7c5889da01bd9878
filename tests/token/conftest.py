from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import TokenUnreachableError
from hsmkm.token.profile import load_profile
from tests.conftest import make_token

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from hsmkm.token.types import TokenSettings


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The functions that workers run, importable here and in them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("token_work")


@pytest.fixture(params=["softhsm2", "nss"])
def profile_name(request: pytest.FixtureRequest) -> str:
    """Each token in turn; a test or module of one token overrides it."""
    name = str(request.param)
    try:
        load_profile(name).module("")
    except TokenUnreachableError:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture(scope="session")
def empty_tokens(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TokenSettings]:
    """Make one empty token of each kind, to be copied: making a database takes NSS a while."""
    made: dict[str, TokenSettings] = {}

    def make(profile: str) -> TokenSettings:
        if profile not in made:
            made[profile] = make_token(tmp_path_factory.mktemp(profile), "test", profile)
        return made[profile]

    return make


@pytest.fixture
def token_settings(profile_name: str, empty_tokens: Callable[[str], TokenSettings], tmp_path: Path) -> TokenSettings:
    """Settings of a new home folder with an initialised, empty token of each kind."""
    empty = empty_tokens(profile_name)
    home = tmp_path / "home"
    shutil.copytree(empty.home, home)
    return replace(empty, home=home)


@pytest.fixture
def new_token(profile_name: str, tmp_path: Path) -> Callable[[str], TokenSettings]:
    """Make, or find again, a home folder with a token of this label."""
    made: dict[str, TokenSettings] = {}

    def make(label: str) -> TokenSettings:
        if label not in made:
            made[label] = make_token(tmp_path / label, label, profile_name)
        return made[label]

    return make
