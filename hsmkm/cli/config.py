"""`hsmkm config`: the settings of a home folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass

import typer

from hsmkm.cli.frame import frame, show

app = typer.Typer(help="The settings of the home folder.", no_args_is_help=True)


@app.command()
def check() -> None:
    """Read the settings and name every fault with its line."""
    settings = frame().settings()
    show([{"settings": str(settings.home / "hsmkm.toml"), "result": "no fault"}], ("settings", "result"))


@app.command(name="show")
def show_settings() -> None:
    """Show every setting in force.

    The defaults and the environment's are included.
    """
    settings = frame().settings()
    sections = [section.name for section in fields(settings) if is_dataclass(getattr(settings, section.name))]
    rows = [row for name in sections for row in _rows(name, asdict(getattr(settings, name)))]
    show(rows, ("setting", "value"))


def _rows(name: str, value: object) -> Iterator[dict[str, object]]:
    if not isinstance(value, dict):
        yield {"setting": name, "value": value}
        return
    for key, inner in value.items():
        yield from _rows(f"{name}.{key}", inner)
