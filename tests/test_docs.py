"""The pages say what is there: commands as their help texts say them, links that lead somewhere, tests that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import commands
from tests.proofs.openssl import open_package
from tests.proofs.peer import add_pem_party
from tests.realm import Realm

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if path.is_file())


def test_the_page_of_commands_is_made_from_the_help_texts() -> None:
    """`python scripts/commands.py --write` makes it anew."""
    assert commands.FILE.read_text(encoding="utf-8") == commands.page()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    known = {path for path, _ in commands.leaves(commands.root())}
    nouns = {path[0] for path in known}
    text = page.read_text(encoding="utf-8")
    named = [
        tuple(words.split())
        for words in re.findall(r"\bhsmkm(?: --[a-z]+ \S+)* ((?:[a-z]+[a-z-]*)(?: [a-z-]+)?)", text)
    ]
    unknown = [words for words in named if words[0] in nouns and words[:2] not in known and words[:1] not in known]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = []
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        path = ROOT / file
        if not path.is_file() or (name and f"def {name}(" not in path.read_text(encoding="utf-8")):
            missing.append(f"{file}::{name}")
    assert missing == []


@pytest.mark.slow
def test_the_commands_that_open_a_package_with_openssl_do(realm: Realm, tmp_path: Path) -> None:
    key = add_pem_party(realm, "pem-line", "line", "4C494E0000000077", "factory")
    (made,) = realm.rows("factory", "meter", "provision", str(realm.order(1, 2)), "--line", "pem-line")
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "packages.md").read_text(encoding="utf-8"), re.DOTALL)
    for source, name in (
        (made["package"], "package.p7m"),
        (key, key.name),
        (realm.folder / "pki" / "root.pem", "root.pem"),
    ):
        shutil.copyfile(source, tmp_path / name)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    keys = open_package(tmp_path / "package.p7m", tmp_path / "root.pem", key, tmp_path)
    assert done.stdout == keys[min(keys)]["master"].hex()
