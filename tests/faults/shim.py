"""The shim of shim.c: builds it, and tells it in this process, or by the environment in another, what to break."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hsmkm.token import ckr
from hsmkm.token.profile import load_profile
from hsmkm.token.types import TokenSettings

SOURCE = Path(__file__).with_name("shim.c")
HEADERS = Path("/usr/include/p11-kit-1")
FOREVER = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to which call: `nth` counts from 1, `times` calls are struck from there on, or all that follow.

    `call` is the name of a PKCS#11 function, or "*"; `code` is the return value, or the milliseconds of a delay.
    """

    call: str
    nth: int
    action: str
    code: int = 0
    times: int = 1

    def __str__(self) -> str:
        return f"{self.call} {self.nth} {self.action} {self.code:#x} {self.times}"

    @property
    def told(self) -> str:
        """The plan in words, as violations name it."""
        what = ckr.name(self.code) if self.action in ("fail", "lose") else str(self.code or "")
        since = "" if self.times == 1 else "from there on"
        return " ".join(filter(None, (f"{self.call} #{self.nth}", self.action, what, since)))


NOTHING = Plan("-", 0, "pass")


@dataclass(frozen=True, slots=True)
class Shim:
    """A built shim; what it says and is told concerns this process, where Module loads it from the same path."""

    path: Path

    def environment(
        self, plan: Plan | None = None, *, once: Path | None = None, record: Path | None = None
    ) -> dict[str, str]:
        """What makes processes load it: HSMKM_TOKEN_MODULE stands before hsmkm.toml."""
        made = {"SHIM_MODULE": load_profile("softhsm2").module(""), "HSMKM_TOKEN_MODULE": str(self.path)}
        optional = {"SHIM_FAULT": plan, "SHIM_ONCE": once, "SHIM_RECORD": record}
        return made | {name: str(value) for name, value in optional.items() if value is not None}

    @property
    def _library(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.path))

    def arm(self, plan: Plan) -> None:
        """Follow a plan from now on; its calls are counted from here."""
        if not self._library.shim_arm(str(plan).encode()):
            raise ValueError(f"no plan: {plan}")

    def disarm(self) -> None:
        """Strike nothing any more."""
        self._library.shim_arm(b"")

    @property
    def hits(self) -> int:
        """How often the plan struck."""
        return int(self._library.shim_hits())

    @property
    def seen(self) -> int:
        """How many calls the plan was asked about."""
        return int(self._library.shim_seen())

    def before(self, settings: TokenSettings) -> TokenSettings:
        """Put it before the module of a token, for this process."""
        os.environ["SHIM_MODULE"] = load_profile(settings.profile).module(settings.module)
        return replace(settings, module=str(self.path))

    def reset(self) -> None:
        """Disarm, and end what a broken run left initialised, as the end of its process would."""
        self._library.shim_reset()

    @contextmanager
    def recording(self, path: Path) -> Iterator[None]:
        """Append every call of this process to a record."""
        if not self._library.shim_record(str(path).encode()):
            raise OSError(f"cannot write {path}")
        try:
            yield
        finally:
            self._library.shim_record(b"")


class MissingError(Exception):
    """What the shim is built with is not installed; the message says what to install."""


@functools.cache
def build() -> Shim:
    """Compile the shim for this process; MissingError says what to install."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not (HEADERS / "p11-kit" / "pkcs11.h").is_file():
        raise MissingError("the shim needs a C compiler and PKCS#11's header: apt-get install gcc libp11-kit-dev")
    path = Path(tempfile.mkdtemp(prefix="hsmkm-shim-")) / "shim.so"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden"]
    libraries = ["-ldl", "-lpthread"]
    subprocess.run([compiler, *options, f"-I{HEADERS}", str(SOURCE), "-o", str(path), *libraries], check=True)
    return Shim(path)
