"""What a user would do otherwise: the same provisioning with python-pkcs11's objects, and with pkcs11-tool in a script.

Both run as processes beside the C loop, with its token. pkcs11-tool loads the module and logs in for each operation;
it cannot wrap with AES key wrap under a secret key, so that its script only generates and destroys the keys: less than
half of the work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench_lab import PROFILE, Lab, Loop
from bench_line import Line

from hsmkm.token.profile import load_profile

FLOOR = "a C loop of the same 18 calls"
SCRIPT = """\
set -eu
for number in $(seq "$COUNT"); do
  for role in master guek gbek gak; do
    "$TOOL" --module "$MODULE" --token-label "$LABEL" --login --pin env:PIN \\
      --keygen --key-type AES:16 --label "$role" --id "$(printf %08x "$number")" --sensitive >/dev/null
  done
  for role in master guek gbek gak; do
    "$TOOL" --module "$MODULE" --token-label "$LABEL" --login --pin env:PIN \\
      --delete-object --type secrkey --label "$role" --id "$(printf %08x "$number")" >/dev/null
  done
done
"""


def python_pkcs11(lab: Lab, count: int) -> float:
    """Provision with python-pkcs11's objects, in a process of its own; the seconds without its start."""
    home = lab.home("factory")
    arguments = [load_profile(PROFILE).module(""), "factory", str(home / "token" / "pin"), str(count)]
    program = Path(__file__).with_name("bench_python_pkcs11.py")
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, program, *arguments], env=_environment(home), check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def pkcs11_tool(lab: Lab, count: int) -> float:
    """Generate and destroy the keys of meters with pkcs11-tool in a shell script; the seconds."""
    home = lab.home("factory")
    named = {
        "TOOL": shutil.which("pkcs11-tool") or "pkcs11-tool",
        "MODULE": load_profile(PROFILE).module(""),
        "LABEL": "factory",
        "PIN": (home / "token" / "pin").read_text(encoding="ascii").strip(),
        "COUNT": str(count),
    }
    began = time.monotonic()
    subprocess.run(["/bin/sh", "-c", SCRIPT], env=_environment(home) | named, check=True, capture_output=True)  # noqa: S603 - our own script
    return time.monotonic() - began


def _environment(home: Path) -> dict[str, str]:
    return os.environ | {"SOFTHSM2_CONF": str(home / "token" / "softhsm2.conf")}


def lines(lab: Lab) -> Iterator[Line]:
    """Give a line for python-pkcs11, and one for pkcs11-tool where OpenSC is installed."""
    base = partial(lab.loop, Loop("factory", "provision"))
    yield Line("python-pkcs11", "meters", FLOOR, partial(python_pkcs11, lab), base, 1_000, 5, warm_up=False)
    if shutil.which("pkcs11-tool"):
        ours = partial(pkcs11_tool, lab)
        yield Line("pkcs11-tool", "meters", FLOOR, ours, base, 5, 1, base_count=1_000, warm_up=False)
