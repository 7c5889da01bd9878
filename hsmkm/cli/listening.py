"""What processes that listen have in common: where, and the log on stderr."""

from __future__ import annotations

import logging
import sys

import typer


def log_to_stderr() -> None:
    """Send the log to stderr, one line each."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def announce(port: int) -> None:
    """Tell whoever started the process that it listens: `READY <port>` on stdout."""
    typer.echo(f"READY {port}")
    sys.stdout.flush()
