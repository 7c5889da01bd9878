"""A command starts without what only its worker needs, and what it names in place of it is there."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from hsmkm import cli
from hsmkm.cli.deferred import DeferredModule, deferred
from hsmkm.pki import certificates

NOUNS = sorted(path.stem for path in Path(cli.__path__[0]).glob("*.py") if "deferred(" in path.read_text("utf-8"))
HEAVY = {"asn1crypto", "cryptography", "pkcs11", "rich", "sqlalchemy"}


def test_no_command_with_a_worker_loads_what_the_worker_needs() -> None:
    program = "import json, sys\nfrom importlib import import_module\n"
    program += f"for name in {NOUNS}: import_module('hsmkm.cli.' + name)\n"
    program += f"print(json.dumps(sorted({HEAVY} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"meter", "package", "pki", "renew", "store", "token"} <= set(NOUNS)
    assert json.loads(done.stdout) == [], "name it with hsmkm.cli.deferred, or import it where it is used"


@pytest.mark.parametrize("noun", [name for name in NOUNS if name != "deferred"])
def test_what_is_deferred_is_what_the_type_checker_sees(noun: str) -> None:
    module = import_module(f"hsmkm.cli.{noun}")
    given = {name: found.module for name, found in vars(module).items() if isinstance(found, DeferredModule)}
    seen = _imported_for_types(Path(str(module.__file__)))
    assert given
    assert given == {name: place for name, place in seen.items() if name[0].islower()}


def _imported_for_types(path: Path) -> dict[str, str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [item for item in tree.body if isinstance(item, ast.If) and ast.unparse(item.test) == "TYPE_CHECKING"]
    lines = [line for block in blocks for line in block.body if isinstance(line, ast.ImportFrom)]
    return {name.asname or name.name: f"{line.module}.{name.name}" for line in lines for name in line.names}


def test_a_deferred_function_travels_as_itself_and_can_be_called() -> None:
    (named,) = deferred("hsmkm.pki", "certificates")
    arrived = pickle.loads(pickle.dumps(named.read_certificates))  # noqa: S301 - made in this line
    assert arrived is certificates.read_certificates
    (paths,) = deferred("os", "path")
    assert paths.join("a", "b") == "a/b"
