"""The concentrator's process: relays all the time, fetches packages and reads meters at intervals, until it is stopped.

Whatever touches the token or the store comes in as a callable and is called from threads.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsmkm.concentrator.fetch import fetch_packages
from hsmkm.concentrator.relay import Relay, RelaySettings
from hsmkm.errors import HsmkmError
from hsmkm.link.aim import Aim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from hsmkm.concentrator.health import Health
    from hsmkm.concentrator.reader import Reader

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConcentratorSettings:
    """The AIM to fetch from every `fetch_seconds`, what takes a package and returns its receipt, and the relay.

    A client has a `reader`, which runs in a thread of its own. `health` hears how the fetching goes.
    """

    aim: Aim
    accept: Callable[[bytes], bytes]
    relay: RelaySettings
    fetch_seconds: float = 60.0
    reader: Reader | None = None
    health: Health | None = None


def run(settings: ConcentratorSettings, ready: Callable[[int], None]) -> None:
    """Run until SIGTERM or SIGINT; `ready` gets the relay's port once it listens, before the first fetch."""
    asyncio.run(_run(settings, ready))


async def _run(settings: ConcentratorSettings, ready: Callable[[int], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    relay = Relay(settings.relay)
    try:
        ready(await relay.start())
        async with _reading(settings.reader, stop):
            await _fetch_until(stop, settings)
    finally:
        await relay.stop()


@asynccontextmanager
async def _reading(reader: Reader | None, stop: asyncio.Event) -> AsyncIterator[None]:
    """Read meanwhile; whatever ends the reading ends the process, and the other way round."""
    if reader is None:
        yield
        return
    running = asyncio.create_task(asyncio.to_thread(reader.run))
    running.add_done_callback(lambda _: stop.set())
    stopping = asyncio.create_task(_stop_reader(reader, stop))
    try:
        yield
    finally:
        stop.set()
        await stopping
        await running


async def _stop_reader(reader: Reader, stop: asyncio.Event) -> None:
    await stop.wait()
    reader.stop()


async def _fetch_until(stop: asyncio.Event, settings: ConcentratorSettings) -> None:
    """Fetch at once and then at the interval; a run that has begun is finished before the process stops."""
    while not stop.is_set():
        await asyncio.to_thread(_fetch, settings)
        try:
            await asyncio.wait_for(stop.wait(), settings.fetch_seconds)
        except TimeoutError:
            continue


def _fetch(settings: ConcentratorSettings) -> None:
    """Fetch once; a failure is logged and the next interval tries again, since what waits stays on the AIM's list."""
    try:
        done = fetch_packages(settings.aim, settings.accept)
    except HsmkmError as error:
        logger.warning("fetching packages: %s%s", error, f" ({error.hint})" if error.hint else "")
        if settings.health:
            settings.health.fetched(0, error.message)
        return
    if settings.health:
        settings.health.fetched(len(done), "")
    for package_id in done:
        logger.info("package %s taken and acknowledged", package_id)
