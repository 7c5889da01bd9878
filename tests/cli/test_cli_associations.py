"""The command line with a meter of two clients: a row for each association, and --association to choose one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from tests.associations import MODEL, ORDER, TITLE, comes_with, two_clients
from tests.realm import Realm

pytestmark = pytest.mark.slow
LINE = Path(__file__).parents[2] / "scripts" / "provision-line"
ENERGY = "1.0.1.8.0.255"


def test_every_command_speaks_in_the_association_that_is_named(realm: Realm) -> None:
    made = two_clients(realm)
    with made.meter(MeterSettings(fault=Fault.DROP_AFTER, fault_setup=1)) as address:
        injected = realm.cli("factory", "meter", "inject", TITLE, "--address", address)
        assert injected.returncode == 7
        assert "1 of 2 associations are not done" in injected.stderr
        (resolved,) = realm.rows("factory", "resolve", TITLE)
        assert (resolved["association"], resolved["state"]) == ("reading", "active")
        (renewed,) = realm.rows("factory", "renew", TITLE, "--association", "reading")
        assert (renewed["association"], renewed["state"]) == ("reading", "active")
        (row,) = realm.rows("factory", "meter", "read", TITLE, ENERGY, "--association", "reading")
        assert row["value"] == "123456"
    shown = realm.rows("factory", "meter", "show", TITLE)
    states = [(row["association"], row["state"]) for row in shown if row["kind"] == "key set"]
    assert states[0] == ("management", "active")
    assert states[-1] == ("reading", "active")
    assert {row["association"] for row in shown} == {"management", "reading"}
    assert [
        (row["setup"], row["client"]) for row in realm.rows("factory", "package", "inspect", str(made.package))
    ] == [
        (0, 1),
        (1, 2),
    ]
    unknown = realm.cli("factory", "renew", TITLE, "--association", "writing")
    assert unknown.returncode == 1
    assert "it has: management, reading" in unknown.stderr


def test_a_model_is_shown_by_association(realm: Realm) -> None:
    comes_with(realm)
    rows = {row["setting"]: row["value"] for row in realm.rows("factory", "model", "show", MODEL)}
    assert rows["associations"] == "management reading"
    reading = realm.rows("factory", "model", "show", MODEL, "--association", "reading")
    assert {row["setting"]: row["value"] for row in reading}["MeterAddressing.client_sap"] == 2
    imported = {row["model"]: row["initial_keys"] for row in realm.rows("factory", "model", "list")}
    assert imported[MODEL] == imported[f"{MODEL}/reading"] == "imported"


def test_a_line_brings_every_association_from_the_order_to_the_delivery(realm: Realm) -> None:
    state = comes_with(realm)
    orders = realm.folder / "orders"
    orders.mkdir()
    (orders / "order.csv").write_text(ORDER)
    addresses = realm.folder / "addresses.csv"
    fixed = ["--home", str(realm.home("factory")), "--orders", str(orders), "--line", "line", "--to", "utility"]
    command = [str(LINE), *fixed, "--addresses", str(addresses), "--once"]
    with serving([Meter(state, MeterSettings(fault=Fault.DROP_AFTER, fault_setup=1))]) as (port,):
        addresses.write_text(f"{TITLE},127.0.0.1:{port}\n")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        report = json.loads((orders / "done" / "order.json").read_text())
        (meter,) = report["meters"]
        assert (meter["state"], meter["key_sets"], meter["generation"]) == ("active", 2, [1, 3])
        (orders / "done" / "order.csv").rename(orders / "order.csv")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    deliveries = [row for row in realm.rows("factory", "package", "list") if row["purpose"] == "delivery"]
    assert [(row["meters"], row["state"]) for row in deliveries] == [(1, "sent")]
    entries = realm.rows("factory", "package", "inspect", report["delivery"][0])
    assert [(row["setup"], row["client"]) for row in entries] == [(0, 1), (1, 2)]
