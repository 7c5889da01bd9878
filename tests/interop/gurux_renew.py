"""Renews meters one after the other with the client of gurux-dlms (GPLv2), as a process of its own.

A meter is a JSON line on stdin: "port", "counter" (the last one that the meter took), and "keys" in hex. For each, the
client associates, transfers a new GUEK and GAK, releases, associates under them, and releases. The last line on stdout
says how many seconds that took in all.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from typing import Any

from gurux_client import OUT, GlobalKeyType, GXDLMSSecuritySetup, secure_client  # type: ignore[import-not-found] # beside it


def renew(meter: dict[str, Any]) -> None:
    keys = {name: bytes.fromhex(value) for name, value in meter["keys"].items()}
    guek, gak = secrets.token_bytes(16), secrets.token_bytes(16)
    old = secure_client(meter["port"], keys["guek"], keys["gak"], meter["counter"] + 1)
    fresh = [(GlobalKeyType.UNICAST_ENCRYPTION, guek), (GlobalKeyType.AUTHENTICATION, gak)]
    old.send(GXDLMSSecuritySetup("0.0.43.0.0.255").globalKeyTransfer(old.client, keys["master"], fresh))
    counter = old.client.ciphering.invocationCounter
    old.close()
    secure_client(meter["port"], guek, gak, counter + 1).close()


def main() -> None:
    seconds = 0.0
    for line in sys.stdin:
        meter, began = json.loads(line), time.monotonic()
        renew(meter)
        seconds += time.monotonic() - began
    print(seconds, file=OUT)


if __name__ == "__main__":
    main()
