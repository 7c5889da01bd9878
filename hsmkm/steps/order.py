"""Production orders: a CSV file that names meters to be made, read strictly and with every fault at once.

Columns, by their header: `system_title` (16 hex digits), or `flag` (FLAG id) and `serial` (a number below 2^40, which
becomes the last 5 octets); `model`; `suite`. A serial number may also stand beside a system title. Orders are UTF-8,
with comma, semicolon or tab as separator.

An order is held as its octets alone: its rows are read once to find every fault, and again at each turn of whoever
works on them. So an order takes the size of its file, and some 50 octets a meter more while it is checked.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hsmkm.dlms.types import SystemTitle
from hsmkm.errors import Fault, InputError
from hsmkm.meter_model import FLAG_ID, MeterModel
from hsmkm.steps.first_lines import FirstLines

COLUMNS = ("system_title", "flag", "serial", "model", "suite")
MAX_ORDER_OCTETS = 64 * 1024 * 1024
MAX_FAULTS = 1000
"""So many faults of an order are named, and all of them counted: a file of another kind is wrong in every line."""

MAX_SERIAL = 2**40 - 1
MAX_SERIAL_TEXT = 32
_SPREADSHEET = re.compile(r"[0-9][.,]?[0-9]*[eE]\+?[0-9]+|[0-9]+[.,]0+|[0-9]{1,3}([ .,'\u00a0][0-9]{3})+")
_HEX_TITLE = re.compile(r"[0-9A-Fa-f]{16}")
_MANGLED = "was changed by a spreadsheet: format the column as text and export again"


@dataclass(frozen=True, slots=True)
class OrderedMeter:
    """One row: a meter to be made. `serial` is the text of the order, or the title's last 5 octets as a number.

    `column` is where the title was read, counting from 1; 0 where that is not known.
    """

    line: int
    system_title: SystemTitle
    serial: str
    model: str
    suite: int
    column: int = 0


@dataclass(frozen=True, slots=True)
class ProductionOrder:
    """An order file that holds no fault. `digest` is the SHA-256 of its octets and tells one order from another.

    `models` are those of its meters, by name.
    """

    name: str
    digest: bytes
    meters: OrderedMeters
    models: Mapping[str, MeterModel]


@dataclass(frozen=True, slots=True)
class OrderedMeters:
    """The meters of an order, read from its octets at each turn; none is held."""

    _reader: _OrderReader = field(repr=False)
    _octets: bytes = field(repr=False)
    _count: int

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[OrderedMeter]:
        rows = _rows(self._reader.source, self._octets)
        next(rows)
        return (self._reader.meter(line, cells) for line, cells in rows)


class Faults:
    """The faults of an order: all are counted, the first are kept."""

    def __init__(self) -> None:
        self._kept: list[Fault] = []
        self._count = 0

    def note(self, source: str, line: int, column: int, text: str) -> None:
        """Count a fault, and keep it if there is room."""
        self._count += 1
        if self._count <= MAX_FAULTS:
            self._kept.append(Fault(source, line, column, text))

    def __len__(self) -> int:
        return self._count

    def refuse(self, name: str, hint: str) -> None:
        """Raise InputError with the faults of the order of this name, if there are any."""
        if self._count:
            named = f", the first {MAX_FAULTS} of which are named" if self._count > MAX_FAULTS else ""
            text = f"order {name} has {self._count} fault(s){named}, nothing was provisioned"
            raise InputError(text, sorted(self._kept), hint)


class _OrderReader:
    def __init__(self, source: str, model_of: Callable[[str], MeterModel]) -> None:
        self.source = source
        self.model_of = model_of
        self.faults = Faults()
        self.columns: dict[str, int] = {}
        self.models: dict[str, MeterModel | None] = {}

    def fault(self, line: int, column: str, text: str) -> None:
        """Note a fault; its column counts from 1 in the order of the file's header."""
        self.faults.note(self.source, line, self.columns.get(column, -1) + 1, f"{column}: {text}")

    def header(self, row: list[str]) -> bool:
        """Take the header row; False where the rows below cannot be read by it."""
        names = [cell.strip().lower() for cell in row]
        self.columns = {name: place for place, name in enumerate(names)}
        before = len(self.faults)
        for place, name in enumerate(names, 1):
            if name not in COLUMNS:
                self.faults.note(self.source, 1, place, f"unknown column {name!r}")
            elif names.index(name) != place - 1:
                self.faults.note(self.source, 1, place, f"column {name!r} stands twice")
        if not {"model", "suite"} <= set(names):
            self.faults.note(self.source, 1, 0, "the header must name the columns model and suite")
        if "system_title" not in names and not {"flag", "serial"} <= set(names):
            self.faults.note(self.source, 1, 0, "the header must name system_title, or flag and serial")
        return len(self.faults) == before

    def check(self, line: int, cells: list[str], first_lines: FirstLines) -> None:
        """Note every fault of a row."""
        if len(cells) != len(self.columns):
            self.faults.note(self.source, line, 0, f"{len(cells)} cells where {len(self.columns)} are named")
            return
        values = self.values(cells)
        title = self.title(line, values)
        self.model(line, values["model"], title, self.suite(line, values["suite"]))
        if title is not None and (first := first_lines.note(title.octets, line)) != line:
            self.fault(line, self.title_column(values), f"{title} stands on line {first} already")

    def meter(self, line: int, cells: list[str]) -> OrderedMeter:
        """Read a row that was checked and has no fault."""
        values = self.values(cells)
        title, suite = self.title(line, values), self.suite(line, values["suite"])
        if title is None or suite is None:
            raise RuntimeError("a row was read that has a fault")
        serial = values.get("serial") or str(int.from_bytes(title.octets[3:], "big"))
        column = self.columns[self.title_column(values)] + 1
        return OrderedMeter(line, title, serial, values["model"], suite, column)

    def values(self, cells: list[str]) -> dict[str, str]:
        """Give the cells of a row by their columns."""
        return {name: cells[place].strip() for name, place in self.columns.items()}

    @staticmethod
    def title_column(values: dict[str, str]) -> str:
        """Tell which column the title was read from."""
        return "system_title" if values.get("system_title") else "serial"

    def title(self, line: int, values: dict[str, str]) -> SystemTitle | None:
        """Read the system title, or make it from FLAG id and serial number."""
        text, serial = values.get("system_title", ""), values.get("serial", "")
        if len(serial) > MAX_SERIAL_TEXT or not serial.isprintable():
            self.fault(line, "serial", f"must be at most {MAX_SERIAL_TEXT} printable characters")
            return None
        if not text:
            return self.title_from_serial(line, values.get("flag", ""), serial)
        if _SPREADSHEET.fullmatch(text) and not _HEX_TITLE.fullmatch(text):
            self.fault(line, "system_title", f"{text!r} {_MANGLED}")
        elif not _HEX_TITLE.fullmatch(text):
            self.fault(line, "system_title", f"{text[:40]!r} is not 16 hex digits")
        elif not FLAG_ID.fullmatch(bytes.fromhex(text)[:3].decode("latin-1")):
            self.fault(line, "system_title", f"{text} does not begin with a FLAG id (three capital letters in ASCII)")
        else:
            title = SystemTitle(bytes.fromhex(text))
            if values.get("flag") and values["flag"] != title.flag:
                self.fault(line, "flag", f"{values['flag']!r} is not the FLAG id of {text}, {title.flag}")
            return title
        return None

    def title_from_serial(self, line: int, flag: str, serial: str) -> SystemTitle | None:
        """Make a system title: FLAG id, then the serial number as 5 octets, big endian."""
        before = len(self.faults)
        if not FLAG_ID.fullmatch(flag):
            self.fault(line, "flag", f"{flag[:40]!r} is not a FLAG id of three capital letters")
        if not serial:
            self.fault(line, "serial", "is empty, and so is system_title")
        elif _SPREADSHEET.fullmatch(serial):
            self.fault(line, "serial", f"{serial!r} {_MANGLED}")
        elif not re.fullmatch(r"[0-9]+", serial):
            self.fault(line, "serial", f"{serial!r} is not a number: give system_title instead")
        elif int(serial) > MAX_SERIAL:
            self.fault(line, "serial", f"{serial} is above {MAX_SERIAL}: give system_title instead")
        return SystemTitle.from_serial(flag, int(serial)) if len(self.faults) == before else None

    def suite(self, line: int, text: str) -> int | None:
        """Read the security suite."""
        if text in ("0", "1", "2"):
            return int(text)
        self.fault(line, "suite", f"{text[:40]!r} is not a security suite: 0, 1 or 2")
        return None

    def model(self, line: int, name: str, title: SystemTitle | None, suite: int | None) -> None:
        """Check that the model is known, and made with this suite and FLAG id."""
        if name not in self.models:
            try:
                self.models[name] = self.model_of(name)
            except InputError as error:
                self.models[name] = None
                self.fault(line, "model", f"{error.message}: {error.hint}")
                return
        model = self.models[name]
        if model is None:
            self.fault(line, "model", f"unknown meter model {name!r}")
            return
        if suite is not None and suite not in model.suites:
            self.fault(line, "suite", f"model {name} has no security suite {suite}")
        if title is not None and title.flag not in model.flags:
            self.fault(
                line,
                self.title_column({"system_title": str(title)} if "system_title" in self.columns else {}),
                f"FLAG id {title.flag} is not one of model {name}",
            )


def _refuse_encoding(source: str, octets: bytes) -> None:
    nul = octets.find(0)
    if octets.isascii() and nul < 0:
        return
    for number, line in enumerate(io.BytesIO(octets), 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            fault = Fault(source, number, error.start + 1, "not UTF-8: export the order as CSV UTF-8")
            raise InputError(f"order {source} has a wrong encoding", [fault]) from error
    if nul >= 0:
        fault = Fault(source, octets[:nul].count(b"\n") + 1, 0, "holds NUL: export the order as CSV UTF-8")
        raise InputError(f"order {source} has a wrong encoding", [fault])


def _rows(source: str, octets: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty with their lines, the header first."""
    text = io.TextIOWrapper(io.BytesIO(octets), "utf-8-sig", newline="")
    header = io.BytesIO(octets).readline().decode()
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"order {source} is not CSV", [Fault(source, line, 0, str(error))]) from error
        if any(cell.strip() for cell in row):
            yield line, row


def read_order(path: Path, model_of: Callable[[str], MeterModel]) -> ProductionOrder:
    """Read a production order; InputError lists the faults of the file, the first 1,000, with line and column."""
    return parse_order(path.name, _octets(path), model_of)


def order_digest(path: Path) -> bytes:
    """Give the SHA-256 of an order file, by which it is known, without reading what it says; raises as `read_order`."""
    return hashlib.sha256(_octets(path)).digest()


def _octets(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            octets = file.read(MAX_ORDER_OCTETS + 1)
    except OSError as error:
        raise InputError(f"cannot read order {path}: {error.strerror}", hint="give the path of a CSV file") from error
    if len(octets) > MAX_ORDER_OCTETS:
        raise InputError(f"order {path} is above {MAX_ORDER_OCTETS} octets", hint="split it into several orders")
    return octets


def parse_order(name: str, octets: bytes, model_of: Callable[[str], MeterModel]) -> ProductionOrder:
    """Read the octets of a production order, named for its faults by `name`."""
    _refuse_encoding(name, octets)
    reader = _OrderReader(name, model_of)
    count = _check(reader, _rows(name, octets))
    reader.faults.refuse(name, "correct the cells named above and give the order again")
    models = {known: model for known, model in reader.models.items() if model is not None}
    return ProductionOrder(name, hashlib.sha256(octets).digest(), OrderedMeters(reader, octets, count), models)


def _check(reader: _OrderReader, rows: Iterator[tuple[int, list[str]]]) -> int:
    """Note every fault of an order, and give the number of its meters."""
    header = next(rows, None)
    if header is None:
        reader.faults.note(reader.source, 1, 0, "the order is empty")
    elif reader.header(header[1]):
        first_lines, count = FirstLines(), 0
        for line, cells in rows:
            reader.check(line, cells, first_lines)
            count += 1
        if not count:
            reader.faults.note(reader.source, 1, 0, "the order names no meter")
        return count
    return 0
