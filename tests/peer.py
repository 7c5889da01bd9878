"""Where the peers of the interop tests live: an environment of their own, since some of them are GPLv2."""

from __future__ import annotations

import os
from pathlib import Path


def peer_python() -> Path:
    """Name the interpreter of the peers, whether it is there or not."""
    default = Path(__file__).resolve().parents[1] / ".venv-interop" / "bin" / "python"
    return Path(os.environ.get("HSMKM_INTEROP_PYTHON", default))
