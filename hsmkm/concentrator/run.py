"""The concentrator's process: relays all the time and fetches packages at an interval, until it is told to stop.

Whatever touches the token or the store comes in as a callable and is called from threads.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsmkm.concentrator.fetch import Aim, fetch_packages
from hsmkm.concentrator.relay import Relay, RelaySettings
from hsmkm.errors import HsmkmError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConcentratorSettings:
    """The AIM to fetch from every `fetch_seconds`, what takes a package and returns its receipt, and the relay."""

    aim: Aim
    accept: Callable[[bytes], bytes]
    relay: RelaySettings
    fetch_seconds: float = 60.0


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
        await _fetch_until(stop, settings)
    finally:
        await relay.stop()


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
        return
    for package_id in done:
        logger.info("package %s taken and acknowledged", package_id)
