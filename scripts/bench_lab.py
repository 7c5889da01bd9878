"""What the lines of scripts/bench work with: the parties' homes, a C loop beside their tokens, and orders.

Everything lies in one temporary folder, which goes at the end. Homes are made when the first line asks for them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hsmkm.token.profile import load_profile

SCRIPTS = Path(__file__).resolve().parent
HEADERS = Path("/usr/include/p11-kit-1")
PROFILE = "softhsm2"
MODEL, FLAG = "virtual", "MMM"


class MissingError(Exception):
    """What a measurement is built with is not installed; the message says what to install."""


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def proportional_mb(process: int) -> float:
    """Tell the memory of a process in megabytes, with its part of what it shares (PSS)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024, 1)


def children_of(process: int) -> list[int]:
    """Name the processes that a process started and that still run."""
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()]


def cpu_seconds(process: int) -> float:
    """Tell the processor time of a process with all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Loop:
    """What the C loop does with a party's token; see scripts/bench_loop.c for the works.

    Each of `threads` has a session; `batch` rounds share one that is closed instead of destroying its keys. `key` is
    the label of the key that signs. `module` stands before SoftHSM's, with its `environment`.
    """

    party: str
    work: str
    threads: int = 1
    batch: int = 0
    key: str = ""
    module: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Lab:
    """The folder with the parties' homes; `stack` ends what a line began, when that is measured."""

    folder: Path
    sample: bool
    stack: ExitStack = field(default_factory=ExitStack)
    loop_cpu_us: float = 0.0
    """Microseconds of processor time that a round of the C loop took when it ran last."""
    provisioned: int = 0
    """How many meters were ordered so far: that many are in the factory's store."""
    _made: set[str] = field(default_factory=set)

    @classmethod
    @contextmanager
    def open(cls, *, sample: bool) -> Iterator[Lab]:
        """Make an empty lab, and clear it away at the end."""
        with tempfile.TemporaryDirectory(prefix="hsmkm-bench-") as name:
            yield cls(Path(name), sample)

    def home(self, party: str) -> Path:
        """Give a party's home: authority, factory, line, utility or concentrator; all are made at the first time."""
        if "parties" not in self._made:
            subprocess.run(  # noqa: S603 - our own script
                [sys.executable, SCRIPTS / "parties.py", self.folder, PROFILE],
                check=True,
                env=os.environ | {"PYTHONPATH": str(SCRIPTS.parent)},
            )
            self._made.add("parties")
        return self.folder / party

    def order(self, meters: int) -> Path:
        """Write a production order for so many new meters."""
        serials = range(self.provisioned + 1, self.provisioned + meters + 1)
        self.provisioned += meters
        path = self.folder / f"order-{serials[0]}.csv"
        path.write_text("flag,serial,model,suite\n" + "".join(f"{FLAG},{serial},{MODEL},0\n" for serial in serials))
        return path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """End what a line began before the next one is measured."""
        with ExitStack() as self.stack:
            yield

    def set_environment(self, values: Mapping[str, str]) -> None:
        """Set variables of the environment until the line ends."""
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        self.stack.callback(_restore, before)

    def loop(self, loop: Loop, count: int) -> float:
        """Let the C loop do so many rounds of its work; the seconds they took."""
        home = self.home(loop.party)
        module = loop.module or load_profile(PROFILE).module("")
        arguments = [module, loop.party, home / "token" / "pin", loop.work, count, loop.threads, loop.batch]
        before = os.times()
        full = os.environ | {"SOFTHSM2_CONF": str(home / "token" / "softhsm2.conf")} | dict(loop.environment)
        done = subprocess.run(  # noqa: S603 - the program that was built below
            [self._built(), *map(str, arguments), *([loop.key] if loop.key else [])],
            env=full,
            check=True,
            capture_output=True,
            text=True,
        )
        after = os.times()
        spent = after.children_user - before.children_user + after.children_system - before.children_system
        self.loop_cpu_us = 1e6 * spent / count
        return float(done.stdout)

    def _built(self) -> Path:
        """Compile the C loop, once."""
        path = self.folder / "bench_loop"
        if not path.exists():
            compiler = shutil.which("cc") or shutil.which("gcc")
            if compiler is None or not (HEADERS / "p11-kit" / "pkcs11.h").is_file():
                raise MissingError(
                    "the C loop needs a compiler and PKCS#11's header: apt-get install gcc libp11-kit-dev"
                )
            options = ["-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu11", f"-I{HEADERS}"]
            source = SCRIPTS / "bench_loop.c"
            subprocess.run([compiler, *options, source, "-o", path, "-ldl", "-lpthread"], check=True)  # noqa: S603 - a compiler
        return path
