"""`hsmkm concentrator`: the process beside the meters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import SplitResult, urlsplit

import typer

from hsmkm.cli.frame import frame, show, standing_worker, talk
from hsmkm.cli.listening import announce, log_to_stderr
from hsmkm.cli.reference import attribute
from hsmkm.concentrator import health
from hsmkm.concentrator.health import Health
from hsmkm.concentrator.holder import Holder
from hsmkm.concentrator.own_meters import OwnMeters
from hsmkm.concentrator.reader import Reader, ReaderSettings, Round
from hsmkm.concentrator.readings import ReadingsFile
from hsmkm.concentrator.relay import RelaySettings
from hsmkm.concentrator.run import ConcentratorSettings
from hsmkm.concentrator.run import run as run_concentrator
from hsmkm.concentrator.turns import Turns
from hsmkm.config import Settings
from hsmkm.errors import InputError, RefusedError
from hsmkm.link.aim import Aim
from hsmkm.link.tls import client_context, server_context
from hsmkm.steps.communicate import split_listen

app = typer.Typer(help="The concentrator beside the meters.", no_args_is_help=True)


@app.command()
def run() -> None:
    """Fetch packages, relay for the head end, and read meters.

    Packages from the AIM are taken and confirmed, until SIGTERM or Ctrl-C. A client reads its meters by itself.

    Prints READY and the relay's port on stdout. See the section concentrator in hsmkm.toml.
    """
    settings = frame().settings()
    section = settings.concentrator
    url = _aim_url(settings)
    host, port = split_listen(section.listen)
    log_to_stderr()
    reads = section.reading.seconds if section.reading.attributes else None
    told = Health(settings.home, section.poll_seconds, reads)
    turns = Turns()
    with standing_worker() as worker, _reader(settings, turns, told) as reader:
        holder = Holder(worker, section.aim)
        context = server_context(settings.home)
        relay = RelaySettings(host, port, context, holder.authorise, holder.route, turns=turns)
        aim = Aim(url.hostname or "", url.port or 0, client_context(settings.home, holder.aim_title()))
        every = section.poll_seconds
        run_concentrator(ConcentratorSettings(aim, holder.accept, relay, every, reader, told), announce)
    talk("stopped")


def _aim_url(settings: Settings) -> SplitResult:
    url = urlsplit(settings.concentrator.aim_url)
    if not settings.concentrator.aim or not url.hostname or not url.port:
        raise InputError(
            "the concentrator does not know its AIM", hint="set concentrator.aim and concentrator.aim_url in hsmkm.toml"
        )
    return url


@contextmanager
def _reader(settings: Settings, turns: Turns, told: Health) -> Iterator[Reader | None]:
    """Give what reads the meters, with a worker of its own; None where nothing is to be read."""
    section = settings.concentrator.reading
    if not section.attributes:
        yield None
        return
    attributes = tuple(attribute(text) for text in section.attributes)
    file = ReadingsFile(settings.home / section.file, section.file_octets, section.files)
    with standing_worker() as worker:
        own = OwnMeters(worker, attributes, section.meter_seconds)

        def done(ended: Round) -> None:
            told.read(ended, own.done(ended))

        yield Reader(ReaderSettings(own.titles, own.measure, file.write, done, worker.abandon, section.seconds), turns)


@app.command(name="health")
def show_health() -> None:
    """Tell how the running concentrator is.

    Whether it runs, hears from its AIM, and read its meters; exit code 1 where something is not well.
    """
    found = health.findings(health.load(frame().home), datetime.now(UTC))
    show(
        [{"check": item.check, "state": "ok" if item.ok else "not well", "detail": item.detail} for item in found],
        ("check", "state", "detail"),
    )
    unwell = [f"{item.check}: {item.detail}" for item in found if not item.ok]
    if unwell:
        raise RefusedError("the concentrator is not well", unwell, "see its log, and hsmkm meter show METER")
