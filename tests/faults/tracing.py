"""Sites where a run can be hurt, and strace to hurt it there.

A site is one write-side system call of a run: its name, the kind of file, and which call of that name it is. A kill
there falls before the call; so all sites together are every moment between two changes that anybody else can see.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

from tests.faults.operations import Answer
from tests.faults.stage import LET_GO, Ended

KILL, EIO, ENOSPC = "SIGKILL", "EIO", "ENOSPC"
FAULTS = (KILL, EIO, ENOSPC)
ATTACH_SECONDS = 20
COMMAND_SECONDS = 120

_FILES = (
    "openat,creat,write,pwrite64,writev,pwritev,fsync,fdatasync,syncfs,ftruncate,truncate,fallocate,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,chmod,fchmod,fchmodat"
)
_WIRE = "sendto,sendmsg,recvfrom,recvmsg,shutdown"
_CALL = re.compile(r"^(?:(\d+) +)?(\w+)\((.*)$")
_OPENS_TO_WRITE = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
_PLACE = re.compile(r'<((?:[^<>\\]|\\.)+)>|"((?:[^"\\]|\\.)*)"')
_KINDS = (
    (re.compile(r"store\.db-wal"), "store.db-wal"),
    (re.compile(r"store\.db-shm"), "store.db-shm"),
    (re.compile(r"store\.db"), "store.db"),
    (re.compile(r"/packages/[^/]*\.partial"), "partial package"),
    (re.compile(r"/packages/[^/]*\.p7m"), "package"),
    (re.compile(r"/packages$"), "packages folder"),
    (re.compile(r"/receipts"), "receipt"),
    (re.compile(r"packages\.lock"), "packages lock"),
    (re.compile(r"/token/"), "token"),
    (re.compile(r"\.pem"), "certificate"),
    (re.compile(r"^(TCP|socket)"), "meter"),
    (re.compile(r"^pipe"), "answer"),
)


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One call of a run."""

    call: str
    ordinal: int
    """Which call of this name it is, from 1 on."""

    kind: str
    """What it writes to."""

    def faults(self) -> tuple[str, ...]:
        """What can happen there; a meter or the owner that is gone is an error of its own, and tested as such."""
        return (KILL,) if self.kind in ("meter", "answer") else FAULTS

    def __str__(self) -> str:
        return f"{self.call} {self.ordinal} of {self.kind}"


@contextmanager
def traced(process: int, trace: Path, inject: str = "") -> Iterator[None]:
    """Trace a held fork, which begins as soon as it is traced, and wait until the tracer ended with it."""
    arguments = [*_strace(trace, inject, "getpgid"), "-e", "signal=none", "-e", f"inject=getpgid:retval={LET_GO}"]
    with subprocess.Popen([*arguments, "-p", str(process)], stderr=subprocess.DEVNULL) as tracer:
        yield
        tracer.wait(ATTACH_SECONDS)


def run_command(words: list[str], trace: Path, inject: str = "") -> Ended:
    """Run a command, traced with every process and thread that it starts, until all of them ended.

    The answer is what the command said to stderr; there is none where it was killed itself.
    """
    arguments = [*_strace(trace, inject), "-e", "signal=SIGKILL", "-f"]
    with subprocess.Popen([*arguments, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            _, said = tracer.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            tracer.terminate()
            return Ended(0, None)
    killed = SIGKILL if "killed by SIGKILL" in trace.read_text(errors="replace") else 0
    return Ended(killed, None if tracer.returncode == -SIGKILL else Answer(said if tracer.returncode else "", said))


def _strace(trace: Path, inject: str, also: str = "") -> list[str]:
    strace = shutil.which("strace")
    assert strace, "strace is missing: apt-get install strace, or scripts/setup"
    calls = ",".join(filter(None, (_FILES, _WIRE, also)))
    arguments = [strace, "-q", "-y", "-s", "0", "-e", f"trace={calls}", "-o", str(trace)]
    return arguments + (["-e", f"inject={inject}"] if inject else [])


def injection(site: Site, fault: str) -> str:
    """Say to strace what to do at a site."""
    what = f"signal={fault}" if fault == KILL else f"error={fault}"
    return f"{site.call}:{what}:when={site.ordinal}"


def sites(trace: Path) -> list[Site]:
    """List the sites of a run of one process that was traced to its end."""
    (found,) = sites_of_each(trace)
    return found


def sites_of_each(trace: Path) -> list[list[Site]]:
    """List the sites of each process and thread that was traced to its end; calls are counted in each apart."""
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[str, list[Site]] = {}
    for line in trace.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None or match[2] == "getpgid":
            continue
        process, call, rest = match[1] or "", match[2], match[3]
        counts[process, call] += 1
        if call == "openat" and not _OPENS_TO_WRITE.search(rest):
            continue
        found.setdefault(process, []).append(Site(call, counts[process, call], _kind(rest)))
    return list(found.values())


def was_refused(trace: Path) -> bool:
    """Tell whether a call of a run was refused as it was asked for."""
    lines = trace.read_text(errors="replace").splitlines()
    return any("(INJECTED)" in line and "getpgid" not in line for line in lines)


def _kind(arguments: str) -> str:
    places = [one or other for one, other in _PLACE.findall(arguments)]
    for pattern, kind in _KINDS:
        if any(pattern.search(place) for place in places):
            return kind
    return Path(places[-1]).name if places else "nothing"
