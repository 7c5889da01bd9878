"""Writes homes of this version, to be read by every later one: run `python -m tests.homes.make_homes` at the root.

The file is called after the version and the schema of its stores. One that was released is never made again.
"""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from hsmkm.steps import attest
from hsmkm.steps.party import utc_now
from hsmkm.store import schema
from tests.field import deliver_meters, make_meters
from tests.homes.homes import CHECKPOINT, DELIVERED, MADE, NAMES, UNDELIVERED, place_pins
from tests.realm import build_realm

LEFT_OUT = ("token/pin", "token/so-pin", "token/softhsm2.conf", "tls/key.pem")
"""What no home of a fixture has, by its end: PINs, the one key in a file, and the path of the folder it was made in."""


def main() -> None:
    """Make the homes in a temporary folder and pack them, where no such file exists."""
    path = Path(__file__).parent / "fixtures" / f"{version('hsmkm')}-{schema.HEAD}.tar.xz"
    if path.exists():
        sys.exit(f"error: {path} exists\nhint: keep it, since every later version must read it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make(folder)
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w:xz", preset=9) as archive:
            for item in (*NAMES, MADE):
                archive.add(folder / item, item, filter=_member)
    sys.stdout.write(f"{path}\n")


def _make(folder: Path) -> None:
    place_pins(folder)
    realm = build_realm(folder)
    deliver_meters(realm, DELIVERED)
    make_meters(realm, UNDELIVERED)
    for name in ("factory", "utility"):
        with realm.open(name) as party:
            attest.checkpoint(party, realm.home(name) / CHECKPOINT)
    (folder / MADE).write_text(utc_now().isoformat() + "\n", encoding="ascii")


def _member(item: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if item.name.endswith(LEFT_OUT):
        return None
    item.uid = item.gid = 0
    item.uname = item.gname = ""
    return item


if __name__ == "__main__":
    os.umask(0o077)
    main()
