"""What workers do in the tests of lanes; a module of its own, because they import it by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from hsmkm.campaign.events import Event
from hsmkm.campaign.plan import Finish
from hsmkm.token.ckr import LoginLostError
from tests.field import PATIENCE


@contextmanager
def opened() -> Iterator[str]:
    """A context, as a party would be."""
    yield "context"


def die_together(_context: str, folder: Path, lanes: int) -> Generator[Event, None, None]:
    """End the process the first time, once all lanes are at work in it; the next process finishes."""
    died = folder / "died"
    if not died.exists():
        (folder / f"lane-{time.monotonic_ns()}").touch()
        until = time.monotonic() + PATIENCE
        while len(list(folder.glob("lane-*"))) < lanes and time.monotonic() < until:
            time.sleep(0.01)
        died.touch()
        os._exit(1)
    yield Finish()


def die(_context: str) -> Generator[Event, None, None]:
    """End the process."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield Finish()


def lose_login_once(_context: str, folder: Path) -> Generator[Event, None, None]:
    """Fail as a session whose token locked its PIN meanwhile, once."""
    lost = folder / "lost"
    if not lost.exists():
        lost.touch()
        raise LoginLostError("the session lost its login")
    yield Finish()
