"""The option by which a command is told of the approval that the policy wants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Approval = Annotated[
    str, typer.Option("--approval", help="Where the policy wants one: the approval's id, or its signed file.")
]


def named(approval: str) -> str:
    """Name a signed file from the root, as the worker finds it; an id stays as it is."""
    path = Path(approval)
    return str(path.resolve()) if approval and path.is_file() else approval
