from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from hsmkm.dlms.association import Association
from hsmkm.dlms.security_setup import Attribute, attribute
from hsmkm.dlms.settings import public
from hsmkm.dlms.types import KeyId, SecuritySuite, SystemTitle
from hsmkm.link.client import Client
from hsmkm.link.tcp import TcpLink
from hsmkm.simulator import state as state_file
from hsmkm.simulator.state import MeterState

PROGRAM = """
import sys
from pathlib import Path
from hsmkm.simulator import state
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serve

serve([Meter(state.load(Path(path)), save=state.save_to(Path(path))) for path in sys.argv[1:]])
"""


def test_a_process_serves_its_meters_until_it_is_told_to_stop(tmp_path: Path) -> None:
    titles = [SystemTitle.from_serial("MMM", serial) for serial in (1, 2)]
    paths = [tmp_path / f"{title}.json" for title in titles]
    for title, path in zip(titles, paths, strict=True):
        state_file.save_to(path)(MeterState(title, SecuritySuite.SUITE_0, dict.fromkeys(KeyId, bytes(16))))
    command = [sys.executable, "-c", PROGRAM, *map(str, paths)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready, *ports = process.stdout.readline().split()
        assert ready == "READY"
        for title, port in zip(titles, ports, strict=True):
            with TcpLink("127.0.0.1", int(port), 5) as link:
                client = Client(link, Association(public(title)))
                assert client.associate().server_title == title
                assert client.get(attribute(Attribute.SERVER_SYSTEM_TITLE)).octets() == title.octets
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
