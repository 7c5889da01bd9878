"""Compiles hsmkm/token/cdefs.py to hsmkm/token/declared.py, or says with exit code 1 that it is not current."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from cffi import FFI

from hsmkm.token.cdefs import cdefs

FILE = Path(__file__).resolve().parent.parent / "hsmkm" / "token" / "declared.py"


def compiled() -> str:
    """Compile the declarations as cffi does for its out-of-line ABI mode."""
    ffi = FFI()
    ffi.cdef(cdefs())
    ffi.set_source("hsmkm.token.declared", None)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / FILE.name
        ffi.emit_python_code(str(made))
        return made.read_text(encoding="utf-8")


def main() -> int:
    """Write the module with --write, or compare it."""
    parser = argparse.ArgumentParser(prog="scripts/declare.py", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write hsmkm/token/declared.py")
    if parser.parse_args().write:
        FILE.write_text(compiled(), encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != compiled():
        sys.stderr.write("hsmkm/token/declared.py is not current: python scripts/declare.py --write\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
