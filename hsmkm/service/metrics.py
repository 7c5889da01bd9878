"""Counters in the text format of Prometheus (exposition format 0.0.4); no label names a party or a meter."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_HELP = {
    "hsmkm_requests_total": "Answered requests by route, method and status.",
    "hsmkm_packages_sent_total": "Key packages handed out.",
    "hsmkm_receipts_total": "Receipts by what became of them.",
    "hsmkm_apdus_carried_total": "APDUs of third parties carried to a meter and answered.",
}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """The service's counters; a name that is not among the known ones raises KeyError."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[Labels]] = {name: Counter() for name in _HELP}

    def count(self, name: str, **labels: str) -> None:
        """Add one; label values are ours, never the caller's text."""
        with self._lock:
            self._counts[name][tuple(sorted(labels.items()))] += 1

    def render(self, *, ready: bool, refusals: Mapping[str, int]) -> str:
        """Return the page, with readiness as the gauge `hsmkm_ready`, and the refusals of meters' answers by kind."""
        with self._lock:
            lines = [line for name in _HELP for line in self._lines(name)]
        lines += ["# HELP hsmkm_ready Whether token and store answer.", "# TYPE hsmkm_ready gauge"]
        lines.append(f"hsmkm_ready {int(ready)}")
        lines += ["# HELP hsmkm_refusals_total Suspicious answers of meters that were refused, by kind."]
        lines += ["# TYPE hsmkm_refusals_total counter"]
        lines += [f'hsmkm_refusals_total{{kind="{kind}"}} {count}' for kind, count in sorted(refusals.items())]
        return "\n".join(lines) + "\n"

    def _lines(self, name: str) -> Iterator[str]:
        yield f"# HELP {name} {_HELP[name]}"
        yield f"# TYPE {name} counter"
        for labels, value in sorted(self._counts[name].items()):
            inner = ",".join(f'{key}="{text}"' for key, text in labels)
            yield f"{name}{{{inner}}} {value}" if inner else f"{name} {value}"
