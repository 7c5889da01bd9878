"""Writes what scripts/million found into docs/performance.md, between two marks for each kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench_write import about, put

Document = dict[str, Any]


def write(document: Document) -> None:
    """Replace the figures of this kind of store in the page."""
    store, meters, order = document["store"], document["meters"], document["order"]
    what = f"{meters:,} meters of suite 0 in orders of {order:,}, with the stores in {store}."
    parts = [f"{what} {about(document)}", phases(document), costs(document), sizes(document)]
    put(f"million {store.lower()}", parts)


def phases(document: Document) -> str:
    """Tabulate the phases: all orders one after the other in one process of the party."""
    head = ["phase", "seconds", "meters/s", "last tenth to first", "us of CPU a meter", "last tenth to first"]
    rows = [[*head, "MB of the party at first", "MB at most", "MB of its workers"]]
    for one in document["phases"]:
        taken = f"{one['seconds']:,.0f}", f"{one['rate']:,.0f}", f"{one['growth']:.2f}"
        cpu = f"{one['cpu_us']:,}", f"{one['cpu_growth']:.2f}"
        memory = f"{one['first_party_mb']:.0f}", f"{one['party_mb']:.0f}", f"{one['workers_mb']:.0f}"
        rows.append([one["name"], *taken, *cpu, *memory])
    return _table(rows)


def costs(document: Document) -> str:
    """Tabulate what a single meter costs, in milliseconds, beside how many there are."""
    found = document["costs"]
    head = [f"ms at {one['meters']:,} meters" for one in found]
    rows = [["one meter", *head, "ratio"]]
    for name in found[0]["seconds"]:
        values = [one["seconds"][name] for one in found]
        rows.append([name, *(f"{1000 * value:.2f}" for value in values), f"{values[-1] / values[0]:.2f}"])
    return _table(rows)


def sizes(document: Document) -> str:
    """Tabulate how large the files of each party are in the end."""
    last = document["costs"][-1]
    found = last["sizes"]
    rows = [["party", "MB of the store", "of these the audit log", "its records", "MB of packages it made"]]
    for name, whole in found["stores_mb"].items():
        rest = f"{found['audit_mb'][name]:g}", f"{found['audit_records'][name]:,}", f"{found['packages_mb'][name]:,.0f}"
        rows.append([name, f"{whole:,.0f}", *rest])
    octets = document["meter_octets"]
    return (
        _table(rows) + f"\n\nA meter and its key set took {octets:,} octets of the factory's store as they were made."
    )


def _table(rows: list[list[str]]) -> str:
    return "\n".join(_lines(rows))


def _lines(rows: list[list[str]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield "| " + " | ".join(row) + " |"
        if not number:
            yield "|" + "---|" * len(row)
