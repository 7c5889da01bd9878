"""One HTTPS connection to an AIM's service; every answer is bounded, and what it says is told safely."""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from hsmkm.errors import HsmkmError, PolicyError, ProtocolError, RefusedError, TransportError
from hsmkm.link.tls import failure

if TYPE_CHECKING:
    import ssl

_PRINTABLE = re.compile(r"[^ -~]")


@dataclass(frozen=True, slots=True)
class Aim:
    """The AIM's service: where it listens, the context that tells it, and how long an answer may take in seconds."""

    host: str
    port: int
    context: ssl.SSLContext
    timeout: float = 60.0


class AimConnection:
    """A connection, which is opened with the first request."""

    def __init__(self, aim: Aim) -> None:
        self._aim = aim
        self._connection = http.client.HTTPSConnection(aim.host, aim.port, timeout=aim.timeout, context=aim.context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._connection.close()

    def request(self, method: str, path: str, limit: int, body: bytes | None = None) -> bytes:
        """Give the content of a good answer, at most `limit` octets.

        Raises PolicyError where the AIM forbids it, RefusedError where it refuses or its certificate is not trusted,
        TransportError where it cannot be reached or cannot answer now, ProtocolError where the answer is not HTTP.
        """
        try:
            self._connection.request(method, path, body)
            with self._connection.getresponse() as response:
                content = response.read(limit + 1)
        except OSError as error:
            raise failure(f"the AIM at {self._aim.host} port {self._aim.port}", error) from error
        except http.client.HTTPException as error:
            raise ProtocolError(f"the AIM's answer to {path} is not HTTP: {type(error).__name__}") from error
        if len(content) > limit:
            raise ProtocolError(f"the AIM's answer to {path} is longer than {limit} octets")
        if response.status not in (200, 201):
            raise _status_error(response.status, path, content)
        return content


def _status_error(status: int, path: str, content: bytes) -> HsmkmError:
    text = f"the AIM answers {path} with status {status}"
    said = _said(content)
    if status == http.client.FORBIDDEN:
        return PolicyError(text, hint=said or "register this party's TLS certificate with the AIM")
    if status >= http.client.INTERNAL_SERVER_ERROR:
        return TransportError(text, hint=said)
    return RefusedError(text, (said,) if said else ())


def _said(content: bytes) -> str:
    """Take the error text of an answer, at most 500 characters, printable ASCII only: it goes to a terminal."""
    try:
        answer = json.loads(content)
        text = f"{answer['error']}: {answer['hint']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return _PRINTABLE.sub("?", text)[:500].removesuffix(": ")
