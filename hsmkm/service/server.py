"""uvicorn over mutual TLS, with the peer's certificate taken from the connection.

Proxy headers are not read, and nothing a client sends can name another peer.
"""

from __future__ import annotations

import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hsmkm.errors import TransportError
from hsmkm.service.app import PEER_CERTIFICATE

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

_MAX_CONNECTIONS = 512
_MAX_HEADERS = 16 * 1024
_KEEP_ALIVE_SECONDS = 15
_LIFETIME_SECONDS = 300
_SHUTDOWN_SECONDS = 10


class PeerProtocol(H11Protocol):
    """HTTP/1.1 whose requests carry the certificate of their TLS connection in `state` (DER, None without TLS).

    A connection lives for five minutes at most, so that a CRL counts for those that never hang up too.
    """

    _lifetime: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Put the certificate where each request of this connection copies its state from."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls else None
        self.app_state: dict[str, Any] = {**self.app_state, PEER_CERTIFICATE: certificate}
        self._lifetime = self.loop.call_later(_LIFETIME_SECONDS, self.shutdown)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock of the connection."""
        if self._lifetime is not None:
            self._lifetime.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """A server that tells its port when it listens, and returns from SIGTERM instead of dying of it."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._listener = listener
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then call `ready`."""
        await super().startup(sockets)
        self._ready(self._listener.getsockname()[1])

    def serve_until_stopped(self) -> None:
        """Run until SIGTERM, SIGINT (raised again as KeyboardInterrupt) or `should_exit`."""
        with self._listener:
            self.run([self._listener])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Keep uvicorn's handling, and do not raise SIGTERM a second time: stopping was what it asked for."""
        with super().capture_signals():
            yield
            self._captured_signals = [number for number in self._captured_signals if number != signal.SIGTERM]


def make_server(app: FastAPI, host: str, port: int, context: ssl.SSLContext, ready: Callable[[int], None]) -> Server:
    """Bind the port (0 takes a free one) and prepare the server; TransportError if the port cannot be had."""
    config = uvicorn.Config(
        app,
        http=PeerProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=_MAX_HEADERS,
        ssl_context_factory=lambda _config, _default: context,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise TransportError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return Server(config, listener, ready)


def serve(app: FastAPI, host: str, port: int, context: ssl.SSLContext, ready: Callable[[int], None]) -> None:
    """Serve until the process is told to stop; `ready` gets the port that is listened on."""
    make_server(app, host, port, context, ready).serve_until_stopped()
