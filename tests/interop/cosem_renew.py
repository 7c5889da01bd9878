"""Renews meters one after the other with the client of dlms-cosem (MIT), as `gurux_renew.py` does."""

from __future__ import annotations

import json
import secrets
import sys
import time
from typing import Any

import structlog  # type: ignore[import-not-found] # lives in the peer environment only
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from dlms_cosem import cosem, enumerations  # type: ignore[import-not-found] # as above
from dlms_cosem.client import DlmsClient  # type: ignore[import-not-found] # as above
from dlms_cosem.io import BlockingTcpIO, TcpTransport  # type: ignore[import-not-found] # as above
from dlms_cosem.security import HighLevelSecurityGmacAuthentication  # type: ignore[import-not-found] # as above

CLIENT_TITLE = b"MMM\x00\x00\x00\x00\x01"
KEY_TRANSFER = cosem.CosemMethod(enumerations.CosemInterface.SECURITY_SETUP, cosem.Obis(0, 0, 43, 0, 0), 2)
GUEK, GAK = 0, 2
ERRORS_ONLY = 50


class Gmac(HighLevelSecurityGmacAuthentication):  # type: ignore[misc] # dlms-cosem has no types here
    def hls_generate_reply_data(self, connection: Any) -> bytes:  # noqa: ANN401 - as above
        """Count the token's value as used: dlms-cosem takes it again for the APDU, which is an IV twice."""
        token: bytes = super().hls_generate_reply_data(connection)
        connection.client_invocation_counter += 1
        return token


def client(port: int, guek: bytes, gak: bytes, counter: int) -> Any:  # noqa: ANN401 - as above
    return DlmsClient(
        TcpTransport(1, 1, BlockingTcpIO("127.0.0.1", port)),
        Gmac(),
        encryption_key=guek,
        authentication_key=gak,
        client_system_title=CLIENT_TITLE,
        client_initial_invocation_counter=counter,
    )


def wrapped(master: bytes, *keys: tuple[int, bytes]) -> bytes:
    """Write the argument of key_transfer: an array of structures of an enumeration and an octet string."""
    items = (b"\x02\x02\x16" + bytes([number]) + b"\x09\x18" + aes_key_wrap(master, key) for number, key in keys)
    return bytes([1, len(keys)]) + b"".join(items)


def renew(meter: dict[str, Any]) -> None:
    keys = {name: bytes.fromhex(value) for name, value in meter["keys"].items()}
    guek, gak = secrets.token_bytes(16), secrets.token_bytes(16)
    with client(meter["port"], keys["guek"], keys["gak"], meter["counter"] + 1).session() as old:
        old.action(KEY_TRANSFER, wrapped(keys["master"], (GUEK, guek), (GAK, gak)))
        counter = old.client_invocation_counter
    with client(meter["port"], guek, gak, counter + 1).session():
        pass


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(ERRORS_ONLY))  # it logs what it deciphers
    seconds = 0.0
    for line in sys.stdin:
        meter, began = json.loads(line), time.monotonic()
        renew(meter)
        seconds += time.monotonic() - began
    sys.stdout.write(f"{seconds}\n")


if __name__ == "__main__":
    main()
