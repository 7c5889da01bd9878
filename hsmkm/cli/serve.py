"""`hsmkm serve`: the AIM's HTTPS interface."""

from __future__ import annotations

import importlib.util

import typer

from hsmkm.cli.frame import frame, standing_worker, talk
from hsmkm.cli.listening import announce, log_to_stderr
from hsmkm.errors import RefusedError
from hsmkm.link.tls import server_context
from hsmkm.steps.communicate import split_listen

app = typer.Typer()


@app.command()
def serve() -> None:
    """Serve registered parties over TLS.

    Gives concentrators their packages and keeps their receipts, and carries third parties' APDUs to meters, until
    SIGTERM or Ctrl-C.

    Prints READY and the port on stdout. Where it listens is service.listen in hsmkm.toml.
    """
    if importlib.util.find_spec("fastapi") is None:
        raise RefusedError("the HTTPS service is not installed", hint="pip install 'hsmkm[service]'")
    from hsmkm.service.app import create_app  # noqa: PLC0415 - the service is an extra
    from hsmkm.service.party_desk import PartyDesk  # noqa: PLC0415 - as above
    from hsmkm.service.server import serve as serve_app  # noqa: PLC0415 - as above

    settings = frame().settings()
    host, port = split_listen(settings.service.listen)
    log_to_stderr()
    with standing_worker() as worker:
        app = create_app(PartyDesk(settings.home, worker))
        serve_app(app, host, port, server_context(settings.home), announce)
    talk("stopped")
