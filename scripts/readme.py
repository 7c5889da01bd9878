"""Runs the commands that README.md shows and compares what they print, or writes it into the file with --write.

A block ```console holds commands after `$ `, continued after `> `, each followed by what it printed. All blocks are
run in their order, by one bash, so that the file is one walk-through. What differs from run to run (identifiers, times,
folders, ports, sizes) is left out of the comparison.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PORTS = (4061, 4062, 8443, 4059)
"""The ports of the walk-through: two meters, the service, the concentrator."""

SECONDS = 600
_MARK = "\x01"
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_VERB = re.compile(r"^ *hsmkm(?: --home \S+)? ((?:--help)|[a-z-]+(?: [a-z-]+)?)", re.MULTILINE)
_VARYING = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"\b[0-9a-f]{40}\b"), "<key identifier>"),
    (re.compile(r"\b[0-9A-F]{33,40}\b"), "<serial>"),
    (re.compile(r"serial=[0-9a-f]{16}"), "serial=<token>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?"), "<time>"),
    (re.compile(r"\[\d+\] \d+"), "<job>"),
    (re.compile(r'"per_second": [0-9.]+'), '"per_second": <rate>'),
    (re.compile(r"\b000[67][0-9a-f]{12}\b"), "<transaction>"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """One command as the file shows it, with what it printed."""

    text: str
    output: str

    def shown(self) -> str:
        """Write it as the file does."""
        first, *more = self.text.split("\n")
        return "\n".join([f"$ {first}", *(f"> {line}".rstrip() for line in more)]) + "\n" + self.output


def commands(block: str) -> list[Command]:
    """Take the inside of a console block apart."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            found[-1][1].append(line)
    return [Command("\n".join(text), "".join(f"{line}\n" for line in output)) for text, output in found]


def blocks(text: str) -> list[list[Command]]:
    """Take all console blocks of a text."""
    return [commands(match[1]) for match in _BLOCK.finditer(text)]


def verbs(text: str) -> list[tuple[str, ...]]:
    """Name the noun and verb of each use of hsmkm in a command."""
    return [tuple(words.split()) for words in _VERB.findall(text)]


def comparable(output: str) -> list[str]:
    """Leave out what differs from run to run, and how wide a table is."""
    for pattern, word in _VARYING:
        output = pattern.sub(word, output)
    return [" ".join(line.split()) for line in output.splitlines()]


@contextmanager
def held_ports() -> Iterator[tuple[int, ...]]:
    """Hold the ports that the walk-through takes, the first two next to each other, so that nobody else is given one.

    Servers may listen on them all the same, as they reuse addresses.
    """
    while True:
        with ExitStack() as stack:
            held = [stack.enter_context(socket.socket()) for _ in PORTS]
            for each in held:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one, other, *rest = held
            for each in (one, *rest):
                each.bind(("127.0.0.1", 0))
            try:
                other.bind(("127.0.0.1", one.getsockname()[1] + 1))
            except (OSError, OverflowError):
                continue
            yield tuple(each.getsockname()[1] for each in held)
            return


def run(shown: Sequence[Command], folder: Path) -> Iterator[tuple[Command, int]]:
    """Run commands in one bash in this folder, and give each with what it printed and its exit code."""
    with held_ports() as taken:
        ports = dict(zip(map(str, PORTS), map(str, taken), strict=True))
        text = _run(shown, folder, ports)
    text = re.sub(rf"({re.escape(str(folder / 'tmp'))}\.\w+)(\S*)( *)", _named_lab, text)
    text = _replaced(text, {own: shown_port for shown_port, own in ports.items()})
    parts = re.findall(rf"{_MARK}begin\n(.*?){_MARK}end (\d+)\n", text, re.DOTALL)
    for command, (printed, code) in zip(shown, parts, strict=False):
        whole = printed if not printed or printed.endswith("\n") else f"{printed}\n"
        yield replace(command, output=whole), int(code)


def _run(shown: Sequence[Command], folder: Path, ports: dict[str, str]) -> str:
    """Run commands on these ports, and give all they printed."""
    script = folder / "script"
    script.write_text(_script(_replaced(command.text, ports) for command in shown), encoding="utf-8")
    program = Path(sys.executable).parent
    environment = os.environ | {
        "TMPDIR": str(folder),
        "COLUMNS": "80",
        "PATH": f"{program}:{os.environ['PATH']}",
        "HSMKM_SERVICE_LISTEN": f"127.0.0.1:{ports['8443']}",
        "HSMKM_CONCENTRATOR_LISTEN": f"127.0.0.1:{ports['4059']}",
    }
    log = folder / "output"
    with log.open("wb") as output:
        subprocess.run(  # noqa: S603 - the commands of our own file
            ["/bin/bash", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            timeout=SECONDS,
            check=False,
        )
    return log.read_text(encoding="utf-8")


def _named_lab(match: re.Match[str]) -> str:
    """Write the folder as its variable, and keep what stands in the next column of a table in its place."""
    spaces = match[3] + " " * (len(match[1]) - len("$LAB")) if len(match[3]) > 1 else match[3]
    return f"$LAB{match[2]}{spaces}"


def _replaced(text: str, ports: dict[str, str]) -> str:
    return re.sub("|".join(rf"\b{port}\b" for port in ports), lambda match: ports[match[0]], text)


def _script(texts: Iterator[str]) -> str:
    """Write a script that marks where each command's output begins and ends, and hands the exit code on."""
    parts = ["trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT", "status=0"]
    for text in texts:
        parts += [f"printf '{_MARK}begin\\n'; (exit $status)", text]
        parts += ["status=$?", f"printf '{_MARK}end %d\\n' $status"]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Compare, or write; 1 where what is shown is not what is printed."""
    parser = argparse.ArgumentParser(prog="scripts/readme.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="put what the commands print into README.md")
    given = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    shown = [command for block in blocks(text) for command in block]
    with tempfile.TemporaryDirectory() as folder:
        done = [command for command, _ in run(shown, Path(folder))]
    if given.write:
        printed = iter(done)
        README.write_text(
            _BLOCK.sub(
                lambda match: "```console\n" + "".join(next(printed).shown() for _ in commands(match[1])) + "```", text
            ),
            encoding="utf-8",
        )
        return 0
    wrong = [
        one.text for one, other in zip(shown, done, strict=True) if comparable(one.output) != comparable(other.output)
    ]
    for command in wrong:
        sys.stderr.write(f"README.md does not show what this prints: {command}\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
