"""Writes what scripts/bench found into docs/performance.md, between two marks, and draws its plots beside it as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "performance.md"
PLOTS = {
    "provision": ("performance-workers.svg", "meters a second, by worker processes", "rate"),
    "network": ("performance-sessions.svg", "meters a second behind 1 ms a call, by sessions", "rate"),
    "fleet": ("performance-fleet.svg", "microseconds a meter, by meters in the store", "cost"),
}
BUSY = "The machine did other work meanwhile, which takes most from the lines of several processes: measure them again."
WIDTH, HEIGHT, MARGIN = 640, 360, 60
TICKS = 4


def write(document: dict[str, Any]) -> None:
    """Replace the results in the page, and the plots of the groups that have one."""
    parts = [about(document), _table(document["lines"])]
    for group, (name, title, what) in PLOTS.items():
        lines = sorted((line for line in document["lines"] if line["group"] == group), key=lambda line: line["at"])
        if len(lines) > 1:
            (DOCS / name).write_text(_plot(lines, title, lines[0]["axis"], what), encoding="utf-8")
            parts.append(f"![{title}]({name})")
    put("bench", parts)


def put(name: str, parts: Sequence[str]) -> None:
    """Replace what stands in the page between the marks of this name; LookupError where there are none."""
    opening, closing = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise LookupError(f"{PAGE} has no {opening} and {closing}")
    PAGE.write_text(before + begin + "\n\n" + "\n\n".join(parts) + "\n\n" + end + after, encoding="utf-8")


def about(document: dict[str, Any]) -> str:
    """Say where and when a document's figures were measured."""
    machine = document["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}"
    text = f"Measured on {machine['date']}: {where}. Load when it began: {machine['load']}."
    return text if machine["load"] < machine["cores"] / 2 else f"{text} {BUSY}"


def _table(lines: Iterable[dict[str, Any]]) -> str:
    rows = ["| line | rate | floor | ratio (lowest to highest) | to reach |", "|---|---|---|---|---|"]
    for line in lines:
        rate = f"{line['rate']:,.0f} {line['unit']}/s"
        floor = f"{line['floor_rate']:,.0f}: {line['floor']}"
        ratio = f"{line['ratio']:.2f} ({line['lowest']:.2f} to {line['highest']:.2f})"
        reach = "" if line["reach"] is None else f"{line['reach']:g}: {'reached' if line['reached'] else 'not reached'}"
        more = "".join(f", {name} {value:g}" for name, value in line["extra"].items())
        rows.append(f"| {line['name']} | {rate}{more} | {floor} | {ratio} | {reach} |")
    return "\n".join(rows)


def _plot(lines: Sequence[dict[str, Any]], title: str, axis: str, what: str) -> str:
    """Draw ours and the floor's over the axis, from zero, as an SVG of text alone."""

    def value(rate: float) -> float:
        return 1e6 / rate if what == "cost" else rate

    ours = [(line["at"], value(line["rate"])) for line in lines]
    floor = [(line["at"], value(line["floor_rate"])) for line in lines]
    across, up = max(x for x, _ in ours), max(y for _, y in ours + floor)
    body = [f'<text x="{WIDTH / 2}" y="24" text-anchor="middle">{escape(title)}</text>', *_axes(across, up, axis)]
    for name, points, colour in (("hsmkm", ours, "#0b6"), ("floor", floor, "#999")):
        placed = [_place(x / across, y / up) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        x, y = placed[-1]
        body.append(f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="end" fill="{colour}">{name}</text>')
    frame = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {frame} {style}>\n' + "\n".join(body) + "\n</svg>\n"


def _axes(across: float, up: float, axis: str) -> list[str]:
    """Draw both axes with their ticks."""
    (left, bottom), (right, top) = _place(0, 0), _place(1, 1)
    body = [f'<path d="M{left},{top} V{bottom} H{right}" fill="none" stroke="#333"/>']
    body.append(f'<text x="{(left + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(axis)}</text>')
    for tick in range(TICKS + 1):
        part = tick / TICKS
        x, y = _place(part, part)
        body.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{across * part:,.6g}</text>')
        body.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{up * part:,.0f}</text>')
        body.append(f'<path d="M{left},{y:.1f} H{right}" stroke="#eee"/>')
    return body


def _place(across: float, up: float) -> tuple[float, float]:
    """Tell where a point lies, given as parts of both axes."""
    return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)
