"""Core files of processes that end by SIGABRT, as a crash leaves them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.proofs.search import copy_memory

PATIENCE = 60.0
_PATTERN = Path("/proc/sys/kernel/core_pattern")
_ENDED = ("Z", "X")


def abort(process: int, folder: Path) -> bytes:
    """End a process that runs in this folder by SIGABRT, and give its core file; no other process dumps there.

    Where the kernel gives core files to a program or another folder, the debugger writes one before, and without it
    what a core file is made of is read: the process's memory.
    """
    pattern = _PATTERN.read_text().strip()
    if pattern.startswith(("|", "/")):
        octets = _by_debugger(process, folder)
        os.kill(process, signal.SIGABRT)
        return octets
    resource.prlimit(process, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.kill(process, signal.SIGABRT)
    _wait_ended(process)
    (core,) = folder.glob("core*")
    octets = core.read_bytes()
    core.unlink()
    return octets


def _by_debugger(process: int, folder: Path) -> bytes:
    path = folder / f"core.{process}"
    if shutil.which("gcore"):
        subprocess.run(["gcore", "-o", str(folder / "core"), str(process)], check=True, capture_output=True)
    else:
        copy_memory(process, path)
    octets = path.read_bytes()
    path.unlink()
    return octets


def _wait_ended(process: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(FileNotFoundError):
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in _ENDED:
                time.sleep(0.05)
                continue
        return
    raise AssertionError(f"process {process} did not end")
