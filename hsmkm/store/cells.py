"""Cells of rows before anything of them is believed.

PostgreSQL keeps to the kinds of its columns. SQLite keeps in a column whatever somebody writes into its file: so a cell
of another kind must end in the error of an altered row, wherever it is met.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hsmkm.errors import IntegrityError
from hsmkm.token.types import Mac


def altered(row: str) -> IntegrityError:
    """Say that a row does not fit its MAC; `row` names its table and key."""
    return IntegrityError(f"{row} does not fit its mac", hint="hsmkm store check names every altered row")


def mac_of(row: Mapping[str, Any], name: str) -> Mac:
    """Read the MAC of a row; raises IntegrityError, naming the row, where its cells hold none."""
    number, value = row["mac_key"], row["mac"]
    if not (isinstance(number, int) and isinstance(value, bytes)):
        raise altered(name)
    return Mac(number, value)


def text_of(cell: object) -> str:
    """Show a cell of a key to people: octets as capital hex digits."""
    return cell.hex().upper() if isinstance(cell, bytes) else str(cell)
