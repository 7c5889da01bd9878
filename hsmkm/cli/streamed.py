"""Results of any length on stdout: written as they come, and never held."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

import typer

from hsmkm.cli.frame import Output, frame, printable

FIRST = 200
"""The rows by which the widths of a table's columns are chosen; what is wider later stands out."""

Row = Mapping[str, object]


def show_streamed(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Write results in the form asked for; a table has only the named columns."""
    output = frame().output
    if output is Output.TABLE:
        lines = _table(rows, columns)
    elif output is Output.JSON:
        lines = _json(rows)
    else:
        lines = (json.dumps(row, default=str) for row in rows)
    for line in lines:
        typer.echo(line)


def _json(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of a JSON array with one object each, and the brackets, the first when the first row is there."""
    before, comma = "[", ""
    for row in rows:
        yield before + comma
        before, comma = "  " + json.dumps(row, default=str), ","
    if not comma:
        yield "[]"
        return
    yield before
    yield "]"


def _table(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    given = iter(rows)
    first = list(islice(given, FIRST))
    names = [name.replace("_", " ") for name in columns]
    widths = [
        max(map(len, (name, *(_cell(row, column) for row in first))))
        for name, column in zip(names, columns, strict=True)
    ]
    yield _line(names, widths)
    for row in chain(first, given):
        yield _line([_cell(row, column) for column in columns], widths)


def _cell(row: Row, column: str) -> str:
    value = row.get(column)
    return "" if value is None else printable(str(value))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
