"""A fresh SoftHSM token for each test that asks for one, and the published test vectors; nothing is mocked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from hsmkm.errors import TokenUnreachableError
from hsmkm.token.profile import load_profile
from hsmkm.token.session import SOFTHSM, init_token, open_session
from hsmkm.token.types import TokenSettings
from hsmkm.token.vault import Vault
from tests import postgresql
from tests.faults.shim import Shim, build
from tests.field import Field, deliver_meters, open_field
from tests.peer import peer_python
from tests.postgresql import Cluster
from tests.realm import TITLES, Realm, build_realm, copy_realm, forget_realm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

settings.register_profile("no deadline", deadline=None)  # no test depends on a time
settings.load_profile("no deadline")


def make_token(home: Path, label: str = "test", profile: str = SOFTHSM) -> TokenSettings:
    """Make a home folder with an initialised token, whose PINs lie in files as `hsmkm init` leaves them.

    NSS derives by itself, so there the policy forbids the host to.
    """
    settings = TokenSettings(
        profile=profile,
        uri="",
        pin="file:token/pin",
        so_pin="file:token/so-pin",
        module="",
        home=home,
        kdf_on_host=profile == SOFTHSM,
    )
    return replace(settings, uri=init_token(settings, label))


@pytest.fixture
def token_settings(tmp_path: Path) -> TokenSettings:
    """Settings of a new home folder with an initialised, empty token."""
    return make_token(tmp_path / "home")


@pytest.fixture(scope="session")
def shim() -> Shim:
    """The module that breaks the token behind it, built once for this process; the build says what is missing."""
    return build()


@pytest.fixture
def vault(token_settings: TokenSettings) -> Iterator[Vault]:
    """A party's keys in a new token, over a session of this process; one such session at a time."""
    with open_session(token_settings) as session:
        opened = Vault(session)
        opened.create_keys()
        yield opened


@pytest.fixture
def new_token(tmp_path: Path) -> Callable[[str], TokenSettings]:
    """Make, or find again, a home folder with a token of this label."""
    made: dict[str, TokenSettings] = {}

    def make(label: str) -> TokenSettings:
        if label not in made:
            made[label] = make_token(tmp_path / label, label)
        return made[label]

    return make


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """Numbers that others published, from tests/vectors/dlms.json."""
    read: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "dlms.json").read_text(encoding="utf-8"))
    return read


@pytest.fixture(scope="session")
def realm_template(tmp_path_factory: pytest.TempPathFactory) -> Realm:
    """Every party of tests.realm, made once for this process; a test takes a copy with `realm`."""
    return build_realm(tmp_path_factory.mktemp("realm"))


@pytest.fixture(scope="session")
def gurux_python() -> Path:
    """The interpreter that has gurux-dlms; it is GPLv2 and so lives in an environment and processes of its own."""
    python = peer_python()
    if not python.exists():
        pytest.skip(f"no peer environment at {python}: scripts/setup makes it, HSMKM_INTEROP_PYTHON names another")
    return python


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The PostgreSQL of this process."""
    return postgresql.shared()


@pytest.fixture(scope="session")
def nss_installed() -> None:
    """Skip what needs NSS softoken where it is not installed."""
    try:
        load_profile("nss").module("")
    except TokenUnreachableError:
        pytest.skip("NSS softoken is not installed")


@pytest.fixture(scope="session")
def realm_templates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[frozenset[str]], Realm]:
    """Make the realm where these parties have NSS softoken for a token, once for this process."""
    made: dict[frozenset[str], Realm] = {}

    def make(on_nss: frozenset[str]) -> Realm:
        if on_nss not in made:
            made[on_nss] = build_realm(tmp_path_factory.mktemp("realm"), dict.fromkeys(on_nss, "nss"))
        return made[on_nss]

    return make


@pytest.fixture
def realm_on_nss(
    nss_installed: None,  # noqa: ARG001 - it skips
    realm_templates: Callable[[frozenset[str]], Realm],
    tmp_path: Path,
) -> Callable[..., Realm]:
    """Give a realm of this test's own where the named parties have NSS softoken for a token, or all of them."""

    def make(*names: str) -> Realm:
        return copy_realm(realm_templates(frozenset(names or TITLES)), tmp_path / "realm")

    return make


@pytest.fixture
def realm(realm_template: Realm, tmp_path: Path) -> Iterator[Realm]:
    """A realm of this test's own."""
    made = copy_realm(realm_template, tmp_path / "realm")
    yield made
    forget_realm(made)


@pytest.fixture(scope="session")
def delivered_template(realm_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Realm:
    """A realm whose utility has the keys of meters that the factory made, once for this process."""
    realm = copy_realm(realm_template, tmp_path_factory.mktemp("delivered") / "realm")
    deliver_meters(realm)
    return realm


@pytest.fixture
def field(delivered_template: Realm, tmp_path: Path) -> Iterator[Field]:
    """A field of this test's own, where nothing runs yet."""
    realm = copy_realm(delivered_template, tmp_path / "realm")
    with open_field(realm) as opened:
        yield opened
    forget_realm(realm)
