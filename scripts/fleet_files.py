"""The files that `hsmkm simulate fleet` begins with: the first meter's state, and the keys that a line gave to all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Keys = Mapping[str, bytes]


def write_fleet(folder: Path, titles: Sequence[str], initial: Keys, keys: Mapping[str, Keys]) -> tuple[Path, Path]:
    """Write the state of the first meter and the states of all suite-0 meters, whose titles follow one another.

    `initial` are the keys of the model, `keys` those of each meter; both files are readable by their owner alone.
    """
    first, states = folder / "first.json", folder / "states"
    state = {"system_title": titles[0], "suite": 0, "keys": {name: value.hex() for name, value in initial.items()}}
    _write(first, json.dumps(state))
    lines = (
        json.dumps([title, 0, 0, "", {"keys": {role: value.hex() for role, value in keys[title].items()}}]) + "\n"
        for title in titles
    )
    _write(states, "".join(lines))
    return first, states


def _write(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text, encoding="utf-8")
