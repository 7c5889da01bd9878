"""`hsmkm concentrator`: the process beside the meters."""

from __future__ import annotations

from urllib.parse import urlsplit

import typer

from hsmkm.cli.frame import frame, standing_worker, talk
from hsmkm.cli.listening import announce, log_to_stderr
from hsmkm.concentrator.fetch import Aim
from hsmkm.concentrator.holder import Holder
from hsmkm.concentrator.relay import RelaySettings
from hsmkm.concentrator.run import ConcentratorSettings
from hsmkm.concentrator.run import run as run_concentrator
from hsmkm.errors import InputError
from hsmkm.link.tls import client_context, server_context
from hsmkm.steps.communicate import split_listen

app = typer.Typer(help="The concentrator beside the meters.", no_args_is_help=True)


@app.command()
def run() -> None:
    """Fetch packages and relay for the head end.

    Packages from the AIM are taken and confirmed, until SIGTERM or Ctrl-C.

    Prints READY and the relay's port on stdout. See the section concentrator in hsmkm.toml.
    """
    settings = frame().settings()
    section = settings.concentrator
    url = urlsplit(section.aim_url)
    if not section.aim or not url.hostname or not url.port:
        raise InputError(
            "the concentrator does not know its AIM", hint="set concentrator.aim and concentrator.aim_url in hsmkm.toml"
        )
    host, port = split_listen(section.listen)
    log_to_stderr()
    with standing_worker() as worker:
        holder = Holder(worker, section.aim)
        relay = RelaySettings(host, port, server_context(settings.home), holder.authorise, holder.route)
        aim = Aim(url.hostname, url.port, client_context(settings.home, holder.aim_title()))
        run_concentrator(ConcentratorSettings(aim, holder.accept, relay, section.poll_seconds), announce)
    talk("stopped")
