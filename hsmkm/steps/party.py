"""A party at work: its settings, its open token and its store, together in the one process that loads the module.

Everything that touches a key runs as `function(party, ...)` inside a worker; see `hsmkm.token.workers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hsmkm.config import Settings, load_settings
from hsmkm.errors import InputError
from hsmkm.store.store import Store
from hsmkm.token.session import TokenSession, open_session
from hsmkm.token.types import TokenSettings
from hsmkm.token.vault import Vault


@dataclass(frozen=True, slots=True)
class Party:
    """One deployment with its token open; lives in a worker and never travels between processes."""

    settings: Settings
    session: TokenSession
    vault: Vault
    store: Store
    actor: str

    @property
    def home(self) -> Path:
        """The home folder."""
        return self.settings.home

    def between_calls(self) -> None:
        """Turn to newer storage and integrity keys, where another process made them and we met them."""
        self.vault.keyring.turn()


def token_settings(settings: Settings) -> TokenSettings:
    """Say to the token layer what the settings say of the token."""
    section = settings.token
    return TokenSettings(
        profile=section.profile,
        uri=section.uri,
        pin=section.pin,
        so_pin=section.so_pin,
        module=section.module,
        home=settings.home,
        kdf_on_host=settings.policy.kdf_on_host,
    )


@contextmanager
def open_party(home: Path, actor: str) -> Iterator[Party]:
    """Log in to the home's token and open its store; the errors of settings, token, login and store."""
    settings = load_settings(home)
    if not settings.token.uri:
        raise InputError(f"{home} has no token yet", hint="make one with: hsmkm token init")
    with open_session(token_settings(settings)) as session:
        vault = Vault(session)
        with Store.open(settings.store_url, vault, actor) as store:
            yield Party(settings, session, vault, store, actor)


@contextmanager
def open_listing(home: Path) -> Iterator[Store]:
    """Open the store for listings, in a process that holds no token: reads without proof, writes nothing."""
    with Store.open(load_settings(home).store_url, None, "") as store:
        yield store


def utc_now() -> datetime:
    """Give the time in UTC, to the second, as every record and package states it."""
    return datetime.now(UTC).replace(microsecond=0)
