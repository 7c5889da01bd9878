"""A store in a temporary folder, and integrity keys in software in place of the token's."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmkm.errors import IntegrityError
from hsmkm.store.key_set import WRAP_OCTETS, KeySet, KeySetRef, KeyState, StoredKey
from hsmkm.store.meter import Meter
from hsmkm.store.store import Store
from hsmkm.token.types import KEY_OCTETS, KeyRole, Mac
from tests.database import query
from tests.postgresql import Cluster, chosen

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to the run on files what does not ask for the store of this run: it would be the same again."""
    if chosen():
        same = [item for item in items if item.path.is_relative_to(HERE) and "url" not in fixtures_of(item)]
        config.hook.pytest_deselected(items=same)
        items[:] = [item for item in items if item not in same]


def fixtures_of(item: pytest.Item) -> list[str]:
    assert isinstance(item, pytest.Function)
    return item.fixturenames


class SoftwareAuthenticator:
    """HMAC-SHA256 with keys that live as long as the test."""

    def __init__(self) -> None:
        self.keys = {1: secrets.token_bytes(32)}
        self.made = 0

    @property
    def integrity_key(self) -> int:
        return max(self.keys)

    def mac(self, data: bytes) -> Mac:
        self.made += 1
        return Mac(self.integrity_key, self._tag(self.integrity_key, data))

    def verify(self, data: bytes, mac: Mac) -> None:
        if mac.key_number not in self.keys or not hmac.compare_digest(self._tag(mac.key_number, data), mac.value):
            raise IntegrityError("the mac does not fit")

    def still_there(self) -> None:
        """No key of it is ever retired."""

    def rotate(self) -> None:
        self.keys[self.integrity_key + 1] = secrets.token_bytes(32)

    def _tag(self, number: int, data: bytes) -> bytes:
        return hmac.digest(self.keys[number], data, hashlib.sha256)


class Factory:
    """Meters and key sets as a factory makes them."""

    def __init__(self, authenticator: SoftwareAuthenticator) -> None:
        self.authenticator = authenticator

    def meter(self, number: int = 1, **changes: object) -> Meter:
        values = {"system_title": b"UTI" + number.to_bytes(5, "big"), "serial": f"{number:08}", "model": "uti-1"}
        return Meter(**values | {"suite": 0} | changes)  # type: ignore[arg-type] # built by name

    def keys(self, suite: int = 0) -> tuple[StoredKey, ...]:
        size = KEY_OCTETS[suite] + WRAP_OCTETS
        return tuple(StoredKey(role, secrets.token_bytes(16), secrets.token_bytes(size)) for role in KeyRole)

    def key_set(self, meter: Meter, generation: int = 1, state: KeyState = KeyState.PRE_ACTIVE) -> KeySet:
        ref = KeySetRef(meter.system_title, 0, 1, generation)
        return KeySet(ref, meter.suite, 1, state, self.keys(meter.suite))


@pytest.fixture
def authenticator() -> SoftwareAuthenticator:
    return SoftwareAuthenticator()


@pytest.fixture
def factory(authenticator: SoftwareAuthenticator) -> Factory:
    return Factory(authenticator)


@pytest.fixture(scope="session")
def server_template(cluster: Cluster) -> str:
    """A database with an empty store, of which each test takes a copy."""
    name = cluster.create()
    Store.create(cluster.url(name))
    return name


@pytest.fixture
def server_url(cluster: Cluster, server_template: str) -> Iterator[str]:
    """An empty store in PostgreSQL."""
    name = cluster.create(server_template)
    with cluster.connect(name) as connection:
        connection.execute("UPDATE epoch SET instance = %s", [secrets.token_bytes(16)])
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture(scope="session")
def file_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an empty store, of which each test takes a copy."""
    path = tmp_path_factory.mktemp("store") / "store.db"
    Store.create(f"sqlite:{path}")
    return path


@pytest.fixture
def file_url(file_template: Path, tmp_path: Path) -> str:
    """An empty store in a SQLite file."""
    address = f"sqlite:{shutil.copy(file_template, tmp_path / 'store.db')}"
    query(address, "UPDATE epoch SET instance = ?", secrets.token_bytes(16))
    return address


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """An empty store in the database that this run is for."""
    found: str = request.getfixturevalue("server_url" if chosen() else "file_url")
    return found


@pytest.fixture
def store(url: str, authenticator: SoftwareAuthenticator) -> Iterator[Store]:
    with Store.open(url, authenticator, "tester", lambda: NOW) as opened:
        yield opened
