"""Writes docs/commands.md from the help texts of the command line, or says with exit code 1 that it is not current."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from hsmkm import errors
from hsmkm.cli.app import app
from hsmkm.errors import HsmkmError

FILE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
INTRODUCTION = """\
# Commands

`hsmkm [OPTIONS] NOUN VERB ...`: results go to stdout, as a table, JSON or JSON lines (`--output`); everything else goes
to stderr. An error is two lines there, `error:` and `hint:`, after a line `fault:` or `reason:` for each thing that is
wrong. `hsmkm NOUN VERB --help` tells every option. This page is made from the help texts by `scripts/commands.py`.
"""
CODES = {0: "done", 2: "the command line was not understood", 130: "interrupted by Ctrl-C or SIGTERM"}
"""The exit codes that no error of ours has."""


def leaves(group: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    """Give every command that does something, with its words."""
    for name, inner in sorted(group.commands.items()):
        if isinstance(inner, TyperGroup):
            yield from leaves(inner, (*path, name))
        elif isinstance(inner, TyperCommand):
            yield (*path, name), inner


def arguments(command: TyperCommand) -> str:
    """Write what follows the verb: arguments, and the options that must be given."""
    words = []
    for parameter in command.params:
        if isinstance(parameter, TyperArgument):
            shown = parameter.metavar or (parameter.name or "").upper()
            words.append(shown if parameter.required or parameter.metavar else f"[{shown}]")
        elif parameter.required:
            words.append(f"{parameter.opts[0]} {(parameter.name or '').upper()}")
    return " ".join(words)


def first_paragraph(command: TyperCommand) -> str:
    """Give what a command is for, in one line."""
    return " ".join((command.help or "").split("\n\n")[0].split())


def options(command: TyperCommand) -> str:
    """List the options that may be given."""
    found = [item for item in command.params if isinstance(item, TyperOption) and not item.required]
    return ", ".join(f"`{item.opts[0]}`" for item in found if "--help" not in item.opts)


def exit_codes() -> Iterator[tuple[int, str]]:
    """Give every exit code with the errors that end with it."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HsmkmError)]
    found = {code: [text] for code, text in CODES.items()}
    for kind in kinds:
        if kind is not HsmkmError:
            found.setdefault(kind.exit_code, []).append((kind.__doc__ or "").split("\n")[0].rstrip("."))
    yield from ((code, "; or: ".join(texts)) for code, texts in sorted(found.items()))


def root() -> TyperGroup:
    """Give the command line as a whole."""
    return typer.main.get_group(app)


def page() -> str:
    """Write the whole page."""
    whole = root()
    parts = [INTRODUCTION, "## Options before the noun\n", "| option | what |\n|---|---|"]
    before = [item for item in whole.params if isinstance(item, TyperOption) and "--help" not in item.opts]
    parts += [f"| `{item.opts[0]}` | {item.help} |" for item in before]
    nouns: dict[str, list[str]] = {}
    for path, command in leaves(whole):
        words = " ".join(("hsmkm", *path, arguments(command))).rstrip().replace("|", "\\|")
        row = f"| `{words}` | {first_paragraph(command)} | {options(command)} |"
        nouns.setdefault(path[0], []).append(row)
    for noun, rows in nouns.items():
        parts += [f"\n## {noun}\n", "| command | what | options |\n|---|---|---|", *rows]
    parts += ["\n## Exit codes\n", "| code | when |\n|---|---|"]
    parts += [f"| {code} | {text} |" for code, text in exit_codes()]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write the page with --write, or compare it."""
    parser = argparse.ArgumentParser(prog="scripts/commands.py", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/commands.md")
    if parser.parse_args().write:
        FILE.write_text(page(), encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != page():
        sys.stderr.write("docs/commands.md is not current: python scripts/commands.py --write\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
