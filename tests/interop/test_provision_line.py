"""scripts/provision-line: from an order that appears in a folder to injected meters and their delivery package."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.interop.meter_relay import relaying
from tests.interop.package_opener import NAME as OPENER
from tests.interop.package_opener import PackageOpener
from tests.interop.station import Station
from tests.realm import title_of

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "provision-line"
FIRST, SECOND, THIRD = (title_of(serial) for serial in (11, 12, 13))
SECONDS = 240


class Floor:
    """A folder of orders with an address list, and the command that works on it."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.orders = station.folder / "orders"
        self.orders.mkdir()
        self.addresses = station.folder / "addresses.csv"
        self.addresses.write_text("# METER,HOST:PORT\n")

    def meter(self, title: str, *options: str, name: str = "") -> int:
        port = self.station.start(title, *options)
        with self.addresses.open("a") as file:
            file.write(f"{name or title}, 127.0.0.1:{port}\n")
        return port

    def order(self, *serials: int, name: str = "order.csv") -> None:
        self.station.realm.order(*serials).rename(self.orders / name)

    def command(self, *more: str) -> list[str]:
        home = str(self.station.realm.home("factory"))
        fixed = ["--home", home, "--orders", str(self.orders), "--line", "line", "--to", OPENER]
        return [str(SCRIPT), *fixed, "--addresses", str(self.addresses), *more]

    def once(self, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        full = os.environ | (environment or {})
        return subprocess.run(
            self.command("--once"), capture_output=True, text=True, env=full, timeout=SECONDS, check=False
        )

    def report(self, place: str, name: str = "order") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.orders / place / f"{name}.json").read_text())
        return found

    def files(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.orders))
            for path in self.orders.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )

    def deliveries(self) -> list[dict[str, Any]]:
        rows = self.station.realm.rows("factory", "package", "list")
        return [row for row in rows if row["purpose"] == "delivery"]

    def delivered_what_the_meters_hold(self, path: str, *titles: str) -> None:
        """Compare the keys in a package with those in the meters' state files."""
        given = PackageOpener.of(self.station.realm).open(Path(path))
        assert {title: given[title] for title in titles} == {title: self.station.meter_keys(title) for title in titles}


@pytest.fixture
def floor(station: Station) -> Floor:
    return Floor(station)


def test_two_meters_at_once_are_injected_and_delivered(floor: Floor) -> None:
    floor.meter(FIRST)
    floor.meter(SECOND, "--activate", "release", name="12")
    floor.order(11, 12)
    done = floor.once()
    assert done.returncode == 0, done.stderr
    assert floor.files() == ["done/order.csv", "done/order.json"]
    report = floor.report("done")
    assert json.loads(done.stdout) == {
        "order": "order.csv",
        "state": "done",
        "report": str(floor.orders / "done" / "order.json"),
    }
    assert {row["meter"]: (row["state"], row["generation"]) for row in report["meters"]} == {
        FIRST: ("active", 1),
        SECOND: ("active", 1),
    }
    assert len(report["injection"]) == 1
    floor.delivered_what_the_meters_hold(report["delivery"][0], FIRST, SECOND)
    assert [row["state"] for row in floor.deliveries()] == ["sent"]


def test_a_meter_in_doubt_is_resolved_and_one_without_address_is_left_to_the_line(floor: Floor) -> None:
    floor.meter(FIRST, "--fault", "drop-after")
    floor.meter(SECOND, "--fault", "first-only", "--fault-count", "2")
    floor.order(11, 12, 13)
    done = floor.once()
    assert done.returncode == 0, done.stderr
    report = floor.report("done")
    assert [row["state"] for row in report["meters"]] == ["active", "active", "no address"]
    floor.delivered_what_the_meters_hold(report["delivery"][0], FIRST, SECOND)


def test_an_order_whose_meter_does_not_answer_fails_and_goes_on_when_it_is_put_back(floor: Floor) -> None:
    floor.meter(FIRST)
    floor.order(11, 12)
    with floor.addresses.open("a") as file:
        file.write(f"{SECOND},127.0.0.1:9\n")
    failed = floor.once()
    assert failed.returncode == 7
    report = floor.report("failed")
    assert [row["state"] for row in report["meters"]] == ["active", "failed"]
    assert "127.0.0.1:9 cannot be reached" in report["faults"][0]
    assert not floor.deliveries()
    floor.addresses.write_text("")
    floor.meter(FIRST)
    floor.meter(SECOND)
    (floor.orders / "failed" / "order.csv").rename(floor.orders / "order.csv")
    assert floor.once().returncode == 0
    report = floor.report("done")
    assert report["meters"][0]["detail"] == "the meter was injected before"
    assert len(report["injection"]) == 1
    floor.delivered_what_the_meters_hold(report["delivery"][0], FIRST, SECOND)


def test_a_bad_order_fails_with_its_faults_and_the_next_one_is_done(floor: Floor) -> None:
    (floor.orders / "bad.csv").write_text("flag,serial,model,suite\nMMM,1.2E+10,virtual,0\nXXX,7,unknown,9\n")
    floor.order(11)
    ended = floor.once()
    assert ended.returncode == 7
    assert floor.files() == ["done/order.csv", "done/order.json", "failed/bad.csv", "failed/bad.json"]
    report = floor.report("failed", "bad")
    assert len(report["faults"]) >= 3
    assert any("bad.csv:2:2: serial: '1.2E+10' was changed by a spreadsheet" in fault for fault in report["faults"])
    assert report["meters"] == []


def test_an_order_of_the_same_name_or_given_twice_replaces_nothing(floor: Floor) -> None:
    floor.order(11)
    assert floor.once().returncode == 0
    floor.order(12)
    floor.order(11, name="again.csv")
    assert floor.once().returncode == 0
    names = [f"done/{name}.{kind}" for name in ("again", "order", "order-2") for kind in ("csv", "json")]
    assert floor.files() == sorted(names)
    assert floor.report("done", "again")["delivery"] == floor.report("done")["delivery"]
    assert len(floor.deliveries()) == 2


@pytest.mark.parametrize("until", ["provisioned", "delivery package"])
def test_a_line_killed_in_between_goes_on_where_it_stopped(floor: Floor, until: str) -> None:
    floor.meter(FIRST)
    floor.meter(SECOND)
    floor.order(11, 12)
    command = floor.command("--poll", "0.2", "--parallel", "1")
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as line:
        assert line.stderr is not None
        assert any(until in text for text in line.stderr)
        line.kill()
    done = floor.once()
    assert done.returncode == 0, done.stderr
    assert floor.files() == ["done/order.csv", "done/order.json"]
    report = floor.report("done")
    assert len(report["injection"]) == len(report["delivery"]) == len(floor.deliveries()) == 1
    floor.delivered_what_the_meters_hold(report["delivery"][0], FIRST, SECOND)


def test_a_killed_lines_last_meter_is_left_to_the_process_that_still_speaks_with_it(floor: Floor) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def hold(_number: int, answer: bytes) -> bytes:
        arrived.set()
        go_on.wait(SECONDS)
        return answer

    patient = os.environ | {"HSMKM_DLMS_TIMEOUT_SECONDS": str(SECONDS)}
    with relaying(floor.station.start(FIRST), hold) as relay:
        floor.addresses.write_text(f"{FIRST},127.0.0.1:{relay.port}\n")
        floor.order(11)
        with subprocess.Popen(floor.command(), stderr=subprocess.DEVNULL, env=patient) as killed:
            assert arrived.wait(SECONDS)
            killed.kill()
        with subprocess.Popen(floor.command("--once"), stderr=subprocess.PIPE, text=True) as line:
            assert line.stderr is not None
            assert any("another process speaks with it" in text for text in line.stderr)
            go_on.set()
            assert line.wait(SECONDS) == 0
    floor.delivered_what_the_meters_hold(floor.report("done")["delivery"][0], FIRST)


def test_it_waits_for_orders_and_for_its_token_and_ends_on_sigterm(floor: Floor) -> None:
    token = floor.station.realm.home("factory") / "token" / "tokens"
    token.rename(token.with_name("away"))
    floor.order(11)
    command = floor.command("--poll", "0.2")
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as line:
        assert line.stderr is not None
        assert line.stdout is not None
        assert any(text.startswith("waiting: ") for text in line.stderr)
        assert floor.files()[0] == "working/order.csv"
        if token.exists():
            token.rmdir()
        token.with_name("away").rename(token)
        assert json.loads(line.stdout.readline())["state"] == "done"
        floor.order(12, name="later.csv")
        assert json.loads(line.stdout.readline())["order"] == "later.csv"
        line.send_signal(signal.SIGTERM)
        assert line.wait(SECONDS) == 0


def test_what_is_not_an_orders_fault_leaves_it_where_it_is(floor: Floor) -> None:
    floor.order(11)
    (floor.station.realm.home("factory") / "token" / "pin").write_text("0" * 8)
    assert floor.once().returncode == 4
    assert floor.files() == ["working/order.csv"]


def test_only_registered_parties_and_one_line_for_a_folder(floor: Floor) -> None:
    floor.order(11)
    stranger = [*floor.command("--once"), "--to", "nobody"]
    refused = subprocess.run(stranger, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (refused.returncode, floor.files()) == (2, ["order.csv"])
    assert "no party 'nobody' of role utility is registered" in refused.stderr
    with subprocess.Popen(floor.command(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as line:
        assert line.stdout is not None
        assert json.loads(line.stdout.readline())["state"] == "done"
        second = floor.once()
        line.terminate()
    assert second.returncode == 1
    assert "another provision-line" in second.stderr
