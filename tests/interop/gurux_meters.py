"""Independent meters in one process, over stdin and stdout: one JSON object on a line in, one on a line out.

{"do": "start", "options": [...]}  a meter with the options of gurux_meter.py    {"port": N}
{"do": "set", "port": N, ...}      activate, ic_reset, and faults as a list      {}
{"do": "tell", "port": N}          {"keys": {...}, "hits": N, "repeated_gueks": N, "lied": [...]}
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from io import StringIO
from typing import Any

import gurux_meter  # type: ignore[import-not-found] # is beside this file and runs in the peer environment only

KEYS = {0: "guek", 1: "gbek", 2: "gak", 3: "master"}
METERS: dict[int, Any] = {}
OUT, sys.stdout = sys.stdout, StringIO()  # gurux prints while deciphering


def start(options: list[str]) -> dict[str, Any]:
    server = gurux_meter.Server(("127.0.0.1", 0), gurux_meter.Session)
    server.meter = gurux_meter.Meter(gurux_meter.options().parse_args(options))
    port = server.server_address[1]
    METERS[port] = server.meter
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return {"port": port}


def settings(meter: Any, order: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - the peer's class has no types
    meter.activate, meter.ic_reset = order["activate"], order["ic_reset"]
    meter.script, meter.hits, meter.gueks = list(order["faults"]), 0, []
    meter.lied = set()
    return {}


def told(meter: Any) -> dict[str, Any]:  # noqa: ANN401 - the peer's class has no types
    keys = {name: meter.keys[number].hex() for number, name in KEYS.items()}
    repeated = len(meter.gueks) - len(set(meter.gueks))
    lied = [KEYS[number] for number in meter.lied]
    return {"keys": keys, "hits": meter.hits, "repeated_gueks": repeated, "lied": lied}


def answered(order: dict[str, Any]) -> dict[str, Any]:
    if order["do"] == "start":
        return start(order["options"])
    meter = METERS[order["port"]]
    with meter.lock:
        return settings(meter, order) if order["do"] == "set" else told(meter)


def main() -> None:
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        OUT.write(json.dumps(answered(json.loads(line))) + "\n")
        OUT.flush()
        sys.stdout.truncate(0)


main()
