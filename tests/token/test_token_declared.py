"""The compiled declarations are those of the C text, and are all that a process loads of cffi."""

from __future__ import annotations

import subprocess
import sys

from scripts import declare


def test_what_is_loaded_is_compiled_from_the_c_declarations() -> None:
    """`python scripts/declare.py --write` makes it anew."""
    assert declare.FILE.read_text(encoding="utf-8") == declare.compiled()


def test_no_c_is_parsed_when_a_process_starts() -> None:
    program = "import sys, hsmkm.token.vault; print(sorted({'cffi', 'pycparser'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
