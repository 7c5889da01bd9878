"""What workers run in the tests: they import it by name, as they import the functions of the package."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hsmkm.errors import RefusedError, TokenBusyError, TokenUnreachableError
from hsmkm.token import ckr
from hsmkm.token.agreement import agree_as_recipient, agree_as_sender, agree_dlms, make_ephemeral_pair
from hsmkm.token.births import Births, NewKey
from hsmkm.token.curves import encode_raw
from hsmkm.token.moves import Move, Moves
from hsmkm.token.session import open_session
from hsmkm.token.types import KeyRole
from hsmkm.token.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from hsmkm.token.types import Mac, TokenSettings
    from tests.faults.shim import Plan, Shim


@contextmanager
def open_vault(settings: TokenSettings) -> Iterator[Vault]:
    with open_session(settings) as session:
        vault = Vault(session)
        vault.create_keys()
        yield vault


def collects_garbage(_: object) -> bool:
    return gc.isenabled()


@contextmanager
def nothing() -> Iterator[str]:
    yield "context"


def provision(vault: Vault, meters: int) -> int:
    with vault.generate_package_key() as package:
        for meter in range(meters):
            provision_one(vault, package, meter)
    return meters


def provision_one(vault: Vault, package: object, meter: int) -> None:
    keys = [vault.generate(role, 0) for role in KeyRole]
    for key in keys:
        vault.seal(key)
    for key in keys[1:]:
        vault.wrap(keys[0], key)
    vault.wrap(package, keys[0])  # type: ignore[arg-type]
    vault.mac(b"meter %d" % meter)
    for key in keys:
        vault.destroy(key)


FORM = tuple(NewKey(role, 16) for role in (KeyRole.MASTER, KeyRole.GUEK, KeyRole.GBEK, KeyRole.GAK))


def bear(vault: Vault, sets: int, *, own_session: bool = False) -> int:
    """Make key sets in bulk, under a package key that another process could have lent."""
    with vault.generate_package_key() as package:
        lent = vault.lend(package)
    with vault.borrow(lent) as package, Births(vault, FORM, package, own_session=own_session) as births:
        for number in range(sets):
            births.make()
            births.mac(b"%d" % number)
    return sets


def bear_in_own_session(vault: Vault, sets: int) -> int:
    return bear(vault, sets, own_session=True)


def mac_in_bulk(vault: Vault) -> bytes:
    return vault.macs().make(b"data")


def move_in_bulk(vault: Vault) -> bytes:
    """Take a key from under its storage key to under that again."""
    with vault.generate(KeyRole.GUEK, 0) as guek:
        sealed = vault.seal(guek)
    under = vault.storage_handle(KeyRole.GUEK)
    with Moves(vault, [Move(KeyRole.GUEK, 16, under, under)]) as moves:
        return moves.move(sealed.wrapped)


def agree_both_ways(vault: Vault) -> None:
    """Send and open a package's key, and agree with a meter, on both curves."""
    for suite, curve in ((1, "P-256"), (2, "P-384")):
        label = f"key-agreement-{suite}"
        vault.create_ec_key(label, curve, "derive")
        public = vault.public_key(label)
        point, kek = agree_as_sender(vault, public, b"info")
        with kek, vault.generate_package_key() as package, agree_as_recipient(vault, label, point, b"info") as opening:
            vault.unwrap_package_key(opening, vault.wrap(kek, package)).destroy()
        with (
            make_ephemeral_pair(vault, suite) as pair,
            agree_dlms(vault, pair, encode_raw(public), b"info", KeyRole.GUEK) as ours,
            agree_dlms(vault, label, pair.point, b"info", KeyRole.GUEK) as theirs,
        ):
            assert vault.seal(ours) == vault.seal(theirs)


def arm(_vault: Vault, shim: Shim, plan: Plan) -> None:
    shim.arm(plan)


def mac(vault: Vault, data: bytes) -> Mac:
    return vault.mac(data)


def log_in(_context: str, settings: TokenSettings) -> None:
    with open_session(settings):
        pass


def echo(context: str, value: object) -> tuple[str, object]:
    return context, value


def process(_context: str) -> int:
    return os.getpid()


def sleep(_context: str, seconds: float) -> None:
    time.sleep(seconds)


def die(_context: str) -> None:
    os._exit(9)


def refuse(_context: str) -> None:
    raise RefusedError("no", reasons=("one", "two"), hint="ask again")


def lose_token(_context: str) -> None:
    raise TokenUnreachableError("the token was removed")


def be_busy(_context: str, busy: bool) -> None:  # noqa: FBT001 - it travels
    if busy:
        raise TokenBusyError("no memory")


def hear_that_pin_is_locked(_context: str) -> None:
    raise ckr.error(ckr.CODES["CKR_PIN_LOCKED"], "C_SignInit")


def log_in_with_a_wrong_pin(_context: str) -> None:
    raise ckr.error(ckr.CODES["CKR_PIN_INCORRECT"], "C_Login")


def meet_and_lose_token(context: str, seconds: float) -> None:
    meet(context, seconds)
    lose_token(context)


def meet_and_wait_for(context: str, seconds: float, path: Path) -> int:
    meet(context, seconds)
    while not path.exists():
        time.sleep(0.01)
    return os.getpid()


def lose_connection(_context: str, kind: type[Exception]) -> None:
    raise kind(errno.ECONNRESET, "Connection reset by peer")


@contextmanager
def never_connected() -> Iterator[str]:
    lose_connection("", ConnectionResetError)
    yield "nothing"


def stumble(_context: str, secret: str) -> None:
    raise KeyError(secret)


def count(_context: str, end: int) -> Generator[int, None, None]:
    yield from range(end)


def count_and_refuse(_context: str, end: int) -> Generator[int, None, None]:
    yield from range(end)
    raise RefusedError("enough")


def make_pair(vault: Vault, label: str) -> None:
    vault.create_ec_key(label)


def sign(vault: Vault, label: str) -> bytes:
    return vault.sign_raw(label, b"text")


def destroy_pair(vault: Vault, label: str) -> None:
    vault.key_pairs.destroy(label)


def has_pair(vault: Vault, label: str) -> bool:
    return vault.has_ec_key(label)


def reconnect(vault: Vault) -> None:
    vault.session.reconnect()


def make_and_destroy_pairs(vault: Vault, prefix: str, count: int) -> int:
    """Make key pairs in the token, each of which signs and is destroyed."""
    for number in range(count):
        label = f"{prefix}-{number}"
        vault.create_ec_key(label)
        assert len(vault.sign_raw(label, b"text")) == 64
        vault.key_pairs.destroy(label)
    return count


_AT_ONCE = threading.Barrier(3)


def meet(_context: str, seconds: float) -> int:
    """Wait until three threads are in this call at once."""
    return _AT_ONCE.wait(seconds)


def macs_of(vault: Vault, texts: list[bytes]) -> list[Mac]:
    return [vault.mac(text) for text in texts]


class Wears:
    """A context that wears with each call, and counts how often it was made fit again, and if somebody was inside."""

    def __init__(self) -> None:
        self.left = 3
        self.recycled = 0
        self.inside = 0
        self.disturbed = False

    @property
    def worn(self) -> bool:
        return self.left <= 0

    def recycle(self) -> None:
        self.disturbed = self.disturbed or self.inside > 0
        self.left = 3
        self.recycled += 1


@contextmanager
def wearing() -> Iterator[Wears]:
    yield Wears()


def wear(context: Wears) -> tuple[int, bool]:
    context.inside += 1
    time.sleep(0.005)
    context.left -= 1
    context.inside -= 1
    return context.recycled, context.disturbed


def process_slowly(_context: str) -> int:
    time.sleep(0.02)
    return os.getpid()
