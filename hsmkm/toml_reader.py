"""Reads one TOML text into dataclasses, and from the environment, and reports every fault at once with its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from hsmkm.errors import Fault, InputError

ENVIRONMENT_PREFIX = "HSMKM_"

T = TypeVar("T")


class Reader:
    """Reads one TOML text into dataclasses and collects its faults with their lines."""

    def __init__(self, source: str, text: str, environment: Mapping[str, str]) -> None:
        self.source = source
        self.lines = text.splitlines()
        self.environment = environment
        self.found: list[Fault] = []
        self.checks: list[tuple[str, Callable[[], list[tuple[str, str]]]]] = []
        try:
            self.table: dict[str, Any] = tomllib.loads(text)
        except (
            ValueError,
            RecursionError,
        ) as error:  # a number without end and a list in a list are not told as TOML's
            place = re.search(r"line (\d+), column (\d+)", str(error))
            line, column = (int(place[1]), int(place[2])) if place else (0, 0)
            raise InputError(f"{source} is not TOML", [Fault(source, line, column, str(error))]) from error

    def line_of(self, section: str, key: str) -> int:
        """Find the line of a key, of its section's header or of one that holds that section, or 0."""
        current, header = "", 0
        for number, line in enumerate(self.lines, 1):
            if match := re.match(r"\s*\[([^\]]+)\]", line):
                current = match[1].strip()
                header = number if current == (section or key) else header
            elif current == section and re.match(rf"\s*{re.escape(key)}\s*=", line):
                return number
        return header if header or "." not in section else self.line_of(section.rpartition(".")[0], key)

    def fault(self, section: str, key: str, text: str) -> None:
        """Note one fault of a key."""
        name = f"{section}.{key}" if section else key
        self.found.append(Fault(self.source, self.line_of(section, key), 0, f"{name}: {text}"))

    def section(
        self, cls: type[T], section: str, table: object, extra: Mapping[str, object], base: T | None = None
    ) -> T | None:
        """Read one table into a dataclass; None where a fault keeps it from being made.

        With a `base`, what the table leaves out is as it is there, and the base's faults are not told again.
        """
        if not isinstance(table, dict):
            outer, _, last = section.rpartition(".")
            self.fault(outer, last, "must be a table")
            return None
        before = len(self.found)
        hints = get_type_hints(cls)
        values: dict[str, object] = dict(extra)
        known = [item for item in fields(cls) if item.name not in extra]  # type: ignore[arg-type]  # T is a dataclass
        for key in table.keys() - {item.name for item in known}:
            self.fault(section, key, "unknown setting")
        for item in known:
            self.value(section, item, hints[item.name], table, values, getattr(base, item.name, None))
        if any(item.name not in values and _is_required(item) for item in known):
            return None
        made = cls(**values)
        check: Callable[[], list[tuple[str, str]]] | None = getattr(made, "faults", None)
        if check:
            told = base.faults() if base is not None else []  # type: ignore[attr-defined]  # of the same class
            self.checks.append((section, lambda: [fault for fault in check() if fault not in told]))
        return made if len(self.found) == before else None

    def value(
        self,
        section: str,
        item: Field[Any],
        kind: type[Any],
        table: Mapping[str, object],
        values: dict[str, object],
        base: object,
    ) -> None:
        """Read one field: a nested section, the environment's value, the file's, the base's, or the default."""
        if is_dataclass(kind):
            name = f"{section}.{item.name}" if section else item.name
            inner: object = self.section(kind, name, table.get(item.name, {}), {}, base)
            if inner is not None:
                values[item.name] = inner
            return
        variable = f"{ENVIRONMENT_PREFIX}{section}_{item.name}".replace(".", "_").upper()
        if section and variable in self.environment:
            raw: object = _from_environment(self.environment[variable], kind)
        elif item.name in table:
            raw = table[item.name]
        elif base is not None:
            values[item.name] = base
            return
        elif _is_required(item):
            self.fault(section, item.name, "is missing")
            return
        else:
            return
        converted = _convert(raw, kind)
        if converted is None:
            self.fault(section, item.name, f"must be {_KIND_NAMES[kind]}")
        else:
            values[item.name] = converted

    def finish(self, made: T | None) -> T:
        """Give what was made, or raise every fault at once."""
        for section, check in self.checks:
            for key, text in check():
                inner, _, last = key.rpartition(".")
                self.fault(".".join(filter(None, (section, inner))), last, text)
        if self.found or made is None:
            raise InputError(
                f"{self.source} has {len(self.found)} fault(s)", sorted(self.found), "correct the lines named above"
            )
        return made


def _is_required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


_KIND_NAMES: dict[object, str] = {
    str: "a string",
    int: "a whole number",
    int | None: "a whole number",
    bool: "true or false",
    tuple[str, ...]: "a list of strings",
    tuple[int, ...]: "a list of whole numbers",
}


def _convert(raw: object, kind: object) -> object | None:
    if kind is str and isinstance(raw, str):
        return raw
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind in (int, int | None) and isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if kind in (tuple[str, ...], tuple[int, ...]) and isinstance(raw, Sequence) and not isinstance(raw, str):
        member = str if kind == tuple[str, ...] else int
        return tuple(raw) if all(type(item) is member for item in raw) else None
    return None


_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)


def _from_environment(text: str, kind: object) -> object:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind is int:
        return int(text) if _WHOLE.fullmatch(text) else text
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind == tuple[int, ...]:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(int(part) if _WHOLE.fullmatch(part) else part for part in parts)
    return text
