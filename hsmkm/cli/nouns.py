"""The words behind `hsmkm`, each imported when it is used: a command loads what it needs, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

_MODULES = {
    "init": "setup",
    "config": "config",
    "token": "token",
    "pki": "pki",
    "party": "party",
    "officer": "officer",
    "approval": "approval",
    "model": "model",
    "meter": "meter",
    "key": "key",
    "package": "package",
    "apdu": "apdu",
    "renew": "renew",
    "resolve": "renew",
    "group": "group",
    "campaign": "campaign",
    "worker": "worker",
    "serve": "serve",
    "concentrator": "concentrator",
    "store": "store",
    "audit": "audit",
    "simulate": "simulate",
}
"""The module of each word, in the order of the help; its `app` holds the verbs of the noun."""

_ALONE = frozenset({"init", "renew", "resolve", "serve"})
"""The words that are no nouns but commands by themselves; the `app` of their module holds them."""


class _Commands(Mapping[str, Any]):
    """The commands by their words; taking one imports its module, listing them imports nothing."""

    def __getitem__(self, word: str) -> Any:  # noqa: ANN401 - typer has no public name for its commands
        found = typer.Typer(rich_markup_mode=None)
        app = import_module(f"hsmkm.cli.{_MODULES[word]}").app
        found.add_typer(app, name=None if word in _ALONE else word)
        return get_group(found).commands[word]

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


class Nouns(TyperGroup):
    """The whole command line."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - what typer gives a group
        super().__init__(**attributes)
        self.commands = _Commands()  # type: ignore[assignment]  # they are never changed
