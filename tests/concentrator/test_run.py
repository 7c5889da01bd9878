from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import TransportError
from hsmkm.link.tls import TlsLink, client_context
from tests.tls_pki import TlsPki

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAD_END = "5554490000000001"
CONCENTRATOR = "434F4E0000000001"
METER = bytes.fromhex("4D4D4D0000BC614E")
PROGRAM = """
import logging, sys
from pathlib import Path
from hsmkm.link.aim import Aim
from hsmkm.concentrator.relay import RelaySettings
from hsmkm.concentrator.run import ConcentratorSettings, run
from hsmkm.link.tls import client_context, server_context

logging.basicConfig(level=logging.INFO)
home, port = Path(sys.argv[1]), int(sys.argv[2])
relay = RelaySettings("127.0.0.1", 0, server_context(home), lambda der: True, lambda title: None)
aim = Aim("127.0.0.1", port, client_context(home), 5.0)
run(ConcentratorSettings(aim, bytes, relay, fetch_seconds=0.1), lambda p: print("READY", p, flush=True))
print("stopped")
"""


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port that is taken and never answered."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_the_relay_works_while_the_aim_is_away_and_sigterm_stops_in_good_order(tmp_path: Path, nobody: int) -> None:
    pki = TlsPki()
    home = pki.home(tmp_path / "concentrator", pki.leaf(CONCENTRATOR))
    head_end = pki.home(tmp_path / "head", pki.leaf(HEAD_END))

    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, home, str(nobody)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        port = int(process.stdout.readline().removeprefix("READY "))
        assert "cannot be reached" in process.stderr.readline()
        assert "cannot be reached" in process.stderr.readline()
        with (
            TlsLink("127.0.0.1", port, client_context(head_end), 10.0, CONCENTRATOR, METER) as link,
            pytest.raises(TransportError),
        ):
            link.exchange(b"\x00", 1, 1)
        process.send_signal(signal.SIGTERM)
        talk = process.stderr.read()
        assert process.stdout.read() == "stopped\n"
    assert process.returncode == 0
    assert "meter 4D4D4D0000BC614E is not one of ours" in talk
