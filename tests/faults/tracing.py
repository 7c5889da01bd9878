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

from tests.faults.stage import LET_GO

KILL, EIO, ENOSPC = "SIGKILL", "EIO", "ENOSPC"
FAULTS = (KILL, EIO, ENOSPC)
ATTACH_SECONDS = 20

_FILES = (
    "openat,creat,write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,truncate,fallocate,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,chmod,fchmod,fchmodat"
)
_WIRE = "sendto,sendmsg,recvfrom,recvmsg,shutdown"
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
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
    strace = shutil.which("strace")
    assert strace, "strace is missing: apt-get install strace, or scripts/setup"
    calls = f"{_FILES},{_WIRE},getpgid"
    arguments = [strace, "-q", "-y", "-s", "0", "-e", "signal=none", "-e", f"trace={calls}", "-o", str(trace)]
    arguments += ["-e", f"inject=getpgid:retval={LET_GO}"]
    arguments += ["-e", f"inject={inject}"] if inject else []
    with subprocess.Popen([*arguments, "-p", str(process)], stderr=subprocess.DEVNULL) as tracer:
        yield
        tracer.wait(ATTACH_SECONDS)


def injection(site: Site, fault: str) -> str:
    """Say to strace what to do at a site."""
    what = f"signal={fault}" if fault == KILL else f"error={fault}"
    return f"{site.call}:{what}:when={site.ordinal}"


def sites(trace: Path) -> list[Site]:
    """List the sites of a run that was traced to its end."""
    counts: Counter[str] = Counter()
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None or match[1] == "getpgid":
            continue
        call, rest = match[1], match[2]
        counts[call] += 1
        if call == "openat" and not _OPENS_TO_WRITE.search(rest):
            continue
        found.append(Site(call, counts[call], _kind(rest)))
    return found


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
