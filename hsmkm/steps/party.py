"""A party at work: its settings, its open token and its store, together in the one process that loads the module.

Everything that touches a key runs as `function(party, ...)` inside a worker; see `hsmkm.token.workers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hsmkm.config import Settings, load_settings
from hsmkm.errors import InputError
from hsmkm.steps.hands import Hands
from hsmkm.steps.role import permit_by_role
from hsmkm.store.anchor import Anchor, FileAnchor
from hsmkm.store.guard import Opening
from hsmkm.store.store import Store
from hsmkm.token.anchor_object import TokenAnchor
from hsmkm.token.pool import Shape
from hsmkm.token.profile import Profile
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
    hands: Hands

    @property
    def home(self) -> Path:
        """The home folder."""
        return self.settings.home

    def between_calls(self) -> None:
        """Turn to newer storage and integrity keys, where another process made them and we met them."""
        self.vault.keyring.turn()

    @property
    def worn(self) -> bool:
        """Whether the module leaked so much that it should be initialised anew."""
        return self.session.worn

    def recycle(self) -> None:
        """Begin a new generation of the token's session, when nothing is under way."""
        self.session.reconnect()


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


def default_anchor(profile: Profile) -> str:
    """Say where the anchor lies if the settings do not: in a token that keeps data objects, else in a file."""
    return "token" if profile.data_objects else "file:store.anchor"


def anchor_of(settings: Settings, session: TokenSession) -> Anchor:
    """Give the anchor of the home's store: an object of its token or a file, as the settings say."""
    kind, _, path = (settings.store.anchor or default_anchor(session.profile)).partition(":")
    if kind == "file":
        return FileAnchor(settings.home / path)
    if not session.profile.data_objects:
        hint = 'set store.anchor = "file:PATH", on another disk or host than the database and its backups'
        raise InputError(f"a token of profile {settings.token.profile} keeps no data objects for the anchor", hint=hint)
    return TokenAnchor(session, settings.home)


def hands_of(settings: Settings, vault: Vault) -> Hands:
    """Give the workers of a party, none of which is started yet."""
    return Hands(vault, Shape.of(settings.workers, vault.session.profile), settings.token.answer_seconds)


@contextmanager
def open_party(home: Path, actor: str, opening: Opening = Opening.USE) -> Iterator[Party]:
    """Log in to the home's token and open its store; the errors of settings, token, login and store."""
    settings = load_settings(home)
    if not settings.token.uri:
        raise InputError(f"{home} has no token yet", hint="make one with: hsmkm token init")
    with open_session(token_settings(settings)) as session:
        vault = Vault(session)
        anchor = anchor_of(settings, session)
        with Store.open(settings.store_url, vault, actor, anchor=anchor, opening=opening) as store:
            store.permit = permit_by_role if settings.policy.roles else None
            with closing(hands_of(settings, vault)) as hands:
                yield Party(settings, session, vault, store, actor, hands)


def open_inspection(home: Path, actor: str) -> AbstractContextManager[Party]:
    """Open a party to check its store: whatever is wrong with that is a finding, and nothing is changed."""
    return open_party(home, actor, Opening.INSPECTION)


@contextmanager
def open_listing(home: Path) -> Iterator[Store]:
    """Open the store for listings, in a process that holds no token: reads without proof, writes nothing."""
    with Store.open(load_settings(home).store_url, None, "") as store:
        yield store


def utc_now() -> datetime:
    """Give the time in UTC, to the second, as every record and package states it."""
    return datetime.now(UTC).replace(microsecond=0)
