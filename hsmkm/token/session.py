"""A logged-in session with one token, and its generations.

C_Initialize and the login belong to the process, so a process has one TokenSession of a module at a time. A handle
lives for one generation: after a re-initialisation the module counts its handles anew, and an old one would silently
name another key. Generations are numbered over the whole process, so that a handle of another session is told apart.

Each thread has a PKCS#11 session of its own, with its buffers: the first one logs in, the others carry no PIN. A thread
that ends leaves its session to the next one, never closed, since a session that is closed takes its keys with it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pkcs11 import Attribute

from hsmkm.errors import InputError, LoginError, RefusedError, TokenRefusedError, TokenUnreachableError
from hsmkm.token.ckr import PinRefusedError
from hsmkm.token.cryptoki import USER, USER_SO, Module
from hsmkm.token.login_mark import LoginMark
from hsmkm.token.profile import load_profile
from hsmkm.token.softhsm import keep_token_file
from hsmkm.token.template import Template
from hsmkm.token.uri import TokenUri, pin_path, pin_state, read_pin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hsmkm.token.attributes import Attributes
    from hsmkm.token.cryptoki import Session
    from hsmkm.token.profile import Profile
    from hsmkm.token.types import TokenSettings
    from hsmkm.token.uri import Pin

SOFTHSM = "softhsm2"
LABEL_OCTETS = 32
_PIN_RANDOM_OCTETS = 24

_generations = itertools.count(1)
_wrong_pins: set[tuple[Path, str]] = set()


class _Lease:
    """A thread's hold on a PKCS#11 session; when the thread ends, the session is free for another."""

    __slots__ = ("free", "generation", "session")

    def __init__(self, generation: int, session: Session, free: list[Session]) -> None:
        self.generation = generation
        self.session = session
        self.free = free

    def __del__(self) -> None:
        self.free.append(self.session)


class _Own(threading.local):
    """What the calling thread has of a token's session."""

    lease: _Lease | None = None


class TokenSession:
    """One token, logged in. `open_session` makes it; `Vault` works with it, in any number of threads."""

    def __init__(self, settings: TokenSettings, profile: Profile, module: Module) -> None:
        self.settings = settings
        self.profile = profile
        self._module = module
        self._pin_state = pin_state(settings.pin, settings.home)
        self._pin = read_pin(settings.pin, settings.home)
        self.generation = next(_generations)
        self.uri = TokenUri()
        self._connected = False
        self._copies: dict[tuple[int, int], int] = {}
        self._lock = threading.RLock()
        self._own = _Own()
        self._slot = 0
        self._free: list[Session] = []
        self._sessions: list[Session] = []
        self._connect()

    @property
    def cryptoki(self) -> Session:
        """The calling thread's own PKCS#11 session; TokenUnreachableError while there is no connection."""
        lease = self._own.lease
        if lease is None or lease.generation != self.generation:
            lease = self._own.lease = self._take()
        return lease.session

    def _take(self) -> _Lease:
        """Take a session that a thread which ended left, or open one; the process is logged in."""
        with self._lock:
            if not self._connected:
                raise TokenUnreachableError("there is no session with the token", hint="connect to it again")
            if not self._free:
                self._keep(self._module.open(self._slot, self.profile.altered))
            return _Lease(self.generation, self._free.pop(), self._free)

    @contextmanager
    def passing(self) -> Iterator[Session]:
        """Open a session for one batch of the calling thread; its session keys go when it is closed."""
        with self._lock:
            if not self._connected:
                raise TokenUnreachableError("there is no session with the token", hint="connect to it again")
            session, generation = self._module.open(self._slot, self.profile.altered), self.generation
        try:
            yield session
        finally:
            if generation == self.generation:  # else it went with the library, and what wore that is gone too
                self.cryptoki.made += session.made
                session.close()

    def _keep(self, session: Session) -> None:
        self._sessions.append(session)
        self._free.append(session)

    def _connect(self) -> None:
        """Initialise, find the token and log in, under the file lock: SoftHSM's login rewrites a file of the token."""
        with _login_lock(self.settings.home):
            if self.settings.profile == SOFTHSM:
                with _usable(self.settings.home / "token"):
                    keep_token_file(self.settings.home)
            wanted = TokenUri.parse(self.settings.uri)
            self.profile.initialisation.check(self.settings.home)
            self._module.initialize(self.profile.initialisation.argument(self.settings.home, wanted.token))
            try:
                self._slot, self.uri = _find(self._module, wanted)
                session = self._module.open(self._slot, self.profile.altered)
                with _usable(self.settings.home / "token"):
                    self._login(session, self._slot)
            except BaseException:
                self._module.finalize()
                raise
            self._sessions, self._free = [], []
            self._keep(session)
            self._connected = True

    def _login(self, session: Session, slot: int) -> None:
        """Log in, once. A login without an answer is a wrong PIN where the token then counts a wrong one.

        So is one whose process did not live to hear the answer: its mark stands. OSError where none can be written.
        """
        source = (self.settings.home.resolve(), self.settings.pin)
        if source in _wrong_pins:
            raise PinRefusedError(
                "the token refused this PIN before, and it is not tried again",
                hint="correct the PIN source and start again; the token locks itself after a few wrong PINs",
            )
        mark = LoginMark.of(self.settings.home, self.uri, self._pin_state)
        if mark.stands() and self._module.counts_wrong_pins(slot):
            raise PinRefusedError(
                "a login with this PIN got no answer, the token counts a wrong PIN, and it is not tried again",
                hint=f"see that the PIN is right; unless its file was corrected, delete {mark.path}; then start again",
            )
        try:
            with mark.until_answered():
                session.login(USER, self._pin)
        except LoginError:
            _wrong_pins.add(source)
            raise
        except TokenUnreachableError as error:
            if not self._module.counts_wrong_pins(slot):
                raise
            _wrong_pins.add(source)
            raise PinRefusedError(
                "the token did not answer the login, and counts a wrong PIN",
                hint="check the PIN source and start again; the PIN is not tried again by itself",
            ) from error

    @contextmanager
    def lent_pin(self) -> Iterator[int]:
        """Give a descriptor in which workers of this process find the PIN, without asking its source again.

        It is a file in memory, which no other process can open by a name; each worker reads it from its beginning.
        """
        descriptor = os.memfd_create("pin", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, self._pin.reveal())
            yield descriptor
        finally:
            os.close(descriptor)

    @property
    def module_path(self) -> str:
        """The file of the PKCS#11 module that is loaded."""
        return self._module.path

    def template(self, listed: Attributes) -> Template:
        """Lay out attributes, without those that this token cannot store."""
        unstored = self.profile.unstored
        return Template({name: value for name, value in listed.items() if name.name not in unstored})

    def working(self, number: int, listed: Attributes) -> int:
        """Return what does the work of a token object, which has these attributes: itself, or a session copy of it.

        Raises TokenRefusedError if the copy may do anything else.
        """
        if not self.profile.session_copies:
            return number
        with self._lock:
            known = self._copies.get((self.generation, number))
            if known is None:
                known = self._copies[self.generation, number] = self._copy(number, listed)
            return known

    def _copy(self, number: int, listed: Attributes) -> int:
        as_copy: Attributes = {Attribute.TOKEN: False}
        copy = self.cryptoki.copy(number, Template(as_copy))
        wrong = self.cryptoki.differences(copy, self.template(listed | as_copy))
        if wrong:
            self.cryptoki.destroy(copy)
            raise TokenRefusedError(f"the token copied a key with other attributes: {', '.join(wrong)}")
        return copy

    def is_whole(self, number: int) -> bool:
        """Tell whether the token made a key to its end: it sets CKA_LOCAL together with the value, after all else.

        Killed before, SoftHSM leaves an object with its label and usages and no value. An imported key is not whole.
        """
        return Attribute.LOCAL.name in self.profile.unstored or any(self.cryptoki.read(number, Attribute.LOCAL))

    def destroy(self, number: int) -> None:
        """Destroy a token object, and its session copy with it."""
        copy = self._copies.pop((self.generation, number), None)
        if copy is not None:
            self.cryptoki.destroy(copy)
        self.cryptoki.destroy(number)

    def reconnect(self) -> None:
        """Start a new generation: every handle made before is void, even if this fails.

        No other thread may be in a call. Raises TokenUnreachableError while the token is gone; it may be called again.
        """
        with self._lock:
            self.generation = next(_generations)
            self._copies.clear()
            with suppress(TokenUnreachableError):  # what is gone needs no end, and the next step tells if it is
                self._finalize()
            self._connect()

    @property
    def worn(self) -> bool:
        """Whether so many session keys were made that the module's leaks are worth a reconnection."""
        limit = self.profile.recycle_after
        return bool(limit) and sum(session.made for session in self._sessions) >= limit

    def close(self) -> None:
        """End the session: its session keys are gone, and every handle is void."""
        with self._lock:
            self.generation = next(_generations)
            self._finalize()

    def _finalize(self) -> None:
        if self._connected:
            self._connected = False
            self._module.finalize()


@contextmanager
def open_session(settings: TokenSettings) -> Iterator[TokenSession]:
    """Log in to the one token that the settings name.

    Raises TokenUnreachableError unless exactly one token matches, LoginError if the PIN cannot be read, is wrong or
    locked, InputError for a wrong address or profile.
    """
    profile, module = _load(settings)
    session = TokenSession(settings, profile, module)
    try:
        yield session
    finally:
        session.close()


def init_token(settings: TokenSettings, label: str) -> str:
    """Initialise a token of this label (1 to 32 octets) and return its PKCS#11 URI, with the serial number.

    The folder of its objects is made in `home`/token. PINs whose source is a file that does not exist are drawn and
    written there (mode 0600). Raises RefusedError if a token of this label exists.
    """
    if not 0 < len(label.encode()) <= LABEL_OCTETS or label != label.strip():
        raise InputError(f"a token label has 1 to {LABEL_OCTETS} octets and no blank at its ends")
    _prepare_home(settings)
    profile, module = _load(settings)
    pin = _make_pin(settings.pin, settings.home)
    with _login_lock(settings.home):
        module.initialize(profile.initialisation.argument(settings.home, label))
        try:
            slot = _free_slot(module, label)
            so_pin = None
            if profile.initialisation.init_token:
                so_pin = _make_pin(settings.so_pin, settings.home)
                module.init_token(slot, so_pin, label)
                slot, _ = _find(module, TokenUri(token=label))
            session = module.open(slot, profile.altered)
            session.login(USER_SO, so_pin)
            session.init_pin(pin)
            return str(_find(module, TokenUri(token=label))[1])
        finally:
            module.finalize()


def _load(settings: TokenSettings) -> tuple[Profile, Module]:
    profile = load_profile(settings.profile)
    for variable, path in profile.environment.items():
        os.environ[variable] = str(settings.home.resolve() / path)
    if settings.profile == SOFTHSM:
        _configure_softhsm(settings.home)
    configured = settings.module or (TokenUri.parse(settings.uri).module_path if settings.uri else "")
    return profile, Module.load(profile.module(configured))


def _find(module: Module, wanted: TokenUri) -> tuple[int, TokenUri]:
    found = []
    for slot in module.slots():
        token, initialised = module.token(slot)
        if initialised and wanted.matches(token):
            found.append((slot, token))
    if len(found) != 1:
        raise TokenUnreachableError(
            f"{len(found)} tokens match {wanted}" if found else f"no token matches {wanted}",
            hint="compare token.uri with the tokens that the module shows: pkcs11-tool --list-token-slots",
        )
    return found[0]


def _free_slot(module: Module, label: str) -> int:
    free = []
    for slot in module.slots():
        token, initialised = module.token(slot)
        if not initialised:
            free.append(slot)
        elif token.token == label:
            raise RefusedError(f"a token {label} exists", hint="it is not initialised again: that would end its keys")
    if not free:
        raise TokenUnreachableError("the module shows no slot with an uninitialised token", hint="make one first")
    return free[0]


def _prepare_home(settings: TokenSettings) -> None:
    home = settings.home.resolve()
    with _usable(home / "token"):
        (home / "token").mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / load_profile(settings.profile).initialisation.directory).mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "see whether the folder is yours, may be written, and the disk has room"
        raise TokenUnreachableError(f"the token's folder {folder} cannot be used: {error.strerror}", hint) from error


def _configure_softhsm(home: Path) -> None:
    """Point SoftHSM at this home's tokens, also when the home was moved or copied since."""
    folder = home.resolve() / "token"
    configuration = folder / "softhsm2.conf"
    text = (
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n"
        "log.level = ERROR\nslots.removable = false\n"
    )
    if folder.is_dir() and not (configuration.is_file() and configuration.read_text(encoding="utf-8") == text):
        with _login_lock(home), _usable(folder):
            temporary = configuration.with_name("softhsm2.conf.new")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(configuration)


def _make_pin(source: str, home: Path) -> Pin:
    path = pin_path(source, home)
    if path is not None and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(_PIN_RANDOM_OCTETS) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return read_pin(source, home)


@contextmanager
def _login_lock(home: Path) -> Iterator[None]:
    folder = home / "token"
    with _usable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "login.lock").open("ab")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
