"""Ends a process whose token does not answer a call: the deadline of every PKCS#11 call.

A call that hangs in the module gives up Python's lock, so a thread of the same process can see it: the innermost frame
of the hanging thread stays one and the same, at one and the same place, in a module that makes the calls. The calls
themselves pay nothing for it. The process cannot end the call, so it ends itself, and its owner says what happened.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import FrameType

HUNG = 124
"""The exit code of a process that was ended so."""

_CALLERS = frozenset(f"hsmkm.token.{name}" for name in ("births", "cryptoki", "macs", "moves"))
_LOOKS = 10

Seen = dict[int, tuple[FrameType, int]]


def watch(seconds: float) -> None:
    """End this process with HUNG once a call of the token takes longer than so many seconds, give or take a tenth."""
    threading.Thread(target=_look, args=(seconds,), name="token-watch", daemon=True).start()


def _look(seconds: float) -> None:
    """Count looks, not time: a process that was stopped, or a host that was suspended, has not waited."""
    seen: Seen = {}
    looks: dict[int, int] = {}
    while max(looks.values(), default=0) <= _LOOKS:
        time.sleep(seconds / _LOOKS)
        now = _calling()
        looks = {thread: looks.get(thread, 0) + 1 for thread, place in now.items() if seen.get(thread) == place}
        seen = now
    os._exit(HUNG)


def _calling() -> Seen:
    """Give the innermost frame of each thread that is in a call; while it is held here, no other frame is equal."""
    frames = sys._current_frames()  # noqa: SLF001 - the documented way to see other threads
    return {
        thread: (frame, frame.f_lasti)
        for thread, frame in frames.items()
        if frame.f_globals.get("__name__") in _CALLERS
    }
