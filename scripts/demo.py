"""Runs the seven steps with real processes: four parties and an authority, a service, a concentrator, and meters.

Every party is a home folder in DIR or in a temporary folder; everything is done with the command `hsmkm`, as a user
would. One line for each step goes to stdout, everything else to stderr. Whatever was started is stopped at the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from demo_lab import STEPS, DemoError, Lab, configure, count, private_file, say, step, tell, together

from hsmkm.errors import HsmkmError

MODELS = {0: "virtual", 1: "virtual-1", 2: "virtual-2"}
FLAG = "MMM"
FIRST_SERIAL = 12345678
READING = "1.0.1.8.0.255"
INITIAL_ROLES = ("guek", "gbek", "gak", "master")
MOST_METERS = 500
KEY_OCTETS = {0: 16, 1: 16, 2: 32}
CHECKERS = 2
HOST = "127.0.0.1"

PARTIES = ("authority", "factory", "line", "utility", "concentrator")


def set_up(lab: Lab) -> None:
    """Make every home, token and certificate, and the registrations; see scripts/parties.py."""
    made = [str(lab.folder), lab.profile, *map(str, lab.suites)]
    command = [sys.executable, str(Path(__file__).with_name("parties.py")), *made]
    lab.finished(lab.processes.start(command, subprocess.PIPE, {}), "the set-up of the parties")


def register_concentrator(lab: Lab, port: int) -> None:
    """Register the concentrator at the utility, with the port that it listens on."""
    certificates = lab.folder / "certificates" / "concentrator"
    options = ("--kind", "client", "--address", f"{HOST}:{port}", "--certificates", certificates)
    lab.run("utility", "party", "add", "concentrator", "--role", "concentrator", *options)


# The order and the meters.


def titles(lab: Lab) -> list[str]:
    """Give the system titles that the order's serial numbers make."""
    serials = range(FIRST_SERIAL, FIRST_SERIAL + lab.meters)
    return [(FLAG.encode() + serial.to_bytes(5, "big")).hex().upper() for serial in serials]


def write_order(lab: Lab) -> Path:
    """Write the production order, the initial keys, and the memory of each virtual meter."""
    path = lab.folder / "order.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("flag", "serial", "model", "suite"))
        suites = [lab.suite(place) for place in range(lab.meters)]
        rows.writerows((FLAG, FIRST_SERIAL + place, MODELS[suite], suite) for place, suite in enumerate(suites))
    keys = {suite: {role: secrets.token_hex(KEY_OCTETS[suite]) for role in INITIAL_ROLES} for suite in lab.suites}
    for suite, values in keys.items():
        lines = [f"{role} = {value}\n" for role, value in values.items()]
        private_file(lab.folder / f"initial-{suite}.keys", "".join(lines))
    (lab.folder / "meters").mkdir(mode=0o700)
    for title, suite in zip(titles(lab), suites, strict=True):
        state = {"system_title": title, "suite": suite, "keys": keys[suite], "tx_ic": 1, "rx_ic": 0}
        private_file(lab.folder / "meters" / f"{title}.json", json.dumps(state))
    return path


def write_places(lab: Lab, ports: Sequence[int]) -> Path:
    """Write where each meter is, a line `METER,HOST:PORT` for each."""
    path = lab.folder / "places.csv"
    lines = [f"{title},{HOST}:{port}\n" for title, port in zip(titles(lab), ports, strict=True)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def fleet(lab: Lab) -> str:
    """Name the suites of the fleet."""
    suites = sorted({lab.suite(place) for place in range(lab.meters)})
    return f"suite {suites[0]}" if len(suites) == 1 else f"suites {', '.join(map(str, suites))}"


# The seven steps.


def provision(lab: Lab, order: Path) -> str:
    """Step 1; gives the order's id."""
    (made,) = lab.run("factory", "meter", "provision", order, "--line", "line")
    keys = sum(len(row["keys"].split()) for row in lab.run("factory", "package", "inspect", made["package"]))
    if made["meters"] != lab.meters or keys != len(INITIAL_ROLES) * lab.meters:
        raise DemoError(f"{made['meters']} meters and {keys} keys were made for an order of {lab.meters}")
    octets = Path(made["package"]).stat().st_size
    step(
        1,
        "factory",
        f"{count(made['meters'], 'meter')} of {order.name} provisioned in {fleet(lab)}, {keys} keys made in the token; "
        f"injection package for the line, {octets:,} octets",
    )
    return str(made["order"])


def inject(lab: Lab, places: Path) -> None:
    """Step 2."""
    begun = time.monotonic()
    done = lab.run("factory", "meter", "inject", "--list", places)
    seconds = time.monotonic() - begun
    records = Counter(row["action"] for row in lab.run("factory", "audit", "log", "--limit", "100000"))
    refused = records["old-keys-refused"]
    if {row["state"] for row in done} != {"active"} or refused != lab.meters:
        raise DemoError(f"{len(done)} meters were injected and {refused} refuse their initial keys")
    step(
        2,
        "factory",
        f"{count(len(done), 'meter')} took new keys over DLMS in {records['key-transfer']} key transfers, each proved; "
        f"{refused} of {len(done)} refuse the initial keys ({seconds:.1f} s)",
    )


def deliver(lab: Lab, order: str) -> Path:
    """Step 3; gives the delivery package."""
    (sent,) = lab.run("factory", "package", "export", "--order", order, "--to", "utility")
    path = Path(sent["file"])
    keys = sum(len(row["keys"].split()) for row in lab.run("factory", "package", "inspect", path))
    step(
        3,
        "factory",
        f"delivery package {sent['package'][:8]} for the {sent['to']}, signed: {count(sent['meters'], 'meter')}, "
        f"{keys} keys, {path.stat().st_size:,} octets",
    )
    return path


def take(lab: Lab, package: Path) -> None:
    """Step 4."""
    (taken,) = lab.run("utility", "package", "import", package)
    (kept,) = lab.run("factory", "package", "receipt", taken["receipt"], "--from-file")
    held = lab.run("utility", "meter", "list", "--limit", "10000")
    if len(held) != lab.meters or kept["state"] != "accepted":
        raise DemoError(f"the utility holds {len(held)} meters, and its receipt says {kept['state']}")
    step(
        4,
        "utility",
        f"package {taken['package'][:8]} verified, keys of {count(len(held), 'meter')} in its own token; "
        f"signed receipt {kept['state']} by the factory",
    )


def generations(lab: Lab, title: str) -> dict[int, str]:
    """Give the generations of a meter's keys at the utility, with their states."""
    rows = lab.run("utility", "meter", "show", title)
    return {row["number"]: row["state"] for row in rows if row["kind"] == "key set"}


def register(lab: Lab, places: Path) -> None:
    """Steps 5 and 6, which are one run: registration, then the renewal of the global keys of the same meters."""
    first = titles(lab)[0]
    (before,) = generations(lab, first)
    begun = time.monotonic()
    done = lab.run("utility", "meter", "register", "--list", places, "--concentrator", "concentrator")
    seconds = time.monotonic() - begun
    behind = lab.run("utility", "meter", "list", "--concentrator", "concentrator", "--limit", "10000")
    sent = [row for row in lab.run("utility", "package", "list") if row["peer"] == "concentrator"]
    accepted = [row for row in sent if row["state"] == "accepted"]
    if len([row for row in behind if row["registered"]]) != lab.meters or len(accepted) != len(sent):
        raise DemoError(f"{len(behind)} meters are registered, {len(accepted)} of {len(sent)} packages were taken")
    step(
        5,
        "utility",
        f"{count(len(behind), 'meter')} registered behind the concentrator, which fetched and acknowledged "
        f"{count(len(accepted), 'package')} over mutual TLS",
    )
    renewed = {row["generation"] for row in done if row["state"] == "active"}
    if len(done) != lab.meters or renewed != {before + 1}:
        raise DemoError(f"the generations in force are {sorted(renewed)}")
    (again,) = lab.run("utility", "renew", first, "--prove-refusal")
    if generations(lab, first) != {before: "deactivated", before + 1: "deactivated", again["generation"]: "active"}:
        raise DemoError(f"the generations of meter {first} are {generations(lab, first)}")
    step(
        6,
        "utility",
        f"in the same run the global keys of {count(len(done), 'meter')} renewed, generation {before} to {before + 1} "
        f"({seconds:.1f} s); once more for {first}, {before + 1} to {again['generation']}",
    )


def communicate(lab: Lab, places: Path) -> None:
    """Step 7."""
    begun = time.monotonic()
    rows = lab.run("utility", "meter", "read", "--list", places, READING)
    seconds = time.monotonic() - begun
    values = sorted(int(row["value"]) for row in rows)
    shown_values = f"{values[0]}" if values[0] == values[-1] else f"{values[0]} to {values[-1]}"
    step(
        7,
        "utility",
        f"{len(rows)} of {count(lab.meters, 'meter')} read through the concentrator under the renewed keys: "
        f"{READING} = {shown_values} ({seconds:.1f} s)",
    )


def close(lab: Lab) -> None:
    """Check every store and audit chain and every package with OpenSSL, and gather packages and receipts."""
    checks = [(party, *words) for party in PARTIES for words in (("store", "check"), ("audit", "verify"))]
    together(lab, [partial(lab.run, *check) for check in checks], CHECKERS)
    for name in ("packages", "receipts"):
        (lab.folder / name).mkdir()
        for party in PARTIES:
            for path in sorted((lab.home(party) / name).glob("*.p7m")):
                shutil.copyfile(path, lab.folder / name / path.name)
    containers = [path for name in ("packages", "receipts") for path in sorted((lab.folder / name).glob("*.p7m"))]
    for path in containers:
        verify(lab, path)
    say(
        f"demo: store check and audit verify are clean in {len(PARTIES)} homes; "
        f"openssl verifies {len(containers)} packages and receipts"
    )


def verify(lab: Lab, path: Path) -> None:
    """Verify a package or receipt under the root, with the openssl command alone."""
    command = ["openssl", "cms", "-verify", "-inform", "DER", "-binary", "-purpose", "any", "-out", os.devnull]
    done = subprocess.run(  # noqa: S603 - fixed words and our own files
        [*command, "-in", str(path), "-CAfile", str(lab.folder / "pki" / "root.pem")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DemoError(f"openssl does not verify {path.name}\n{done.stderr.rstrip()}")


def demonstrate(lab: Lab) -> None:
    """Run the whole of it."""
    say(f"demo: parties, tokens and certificates in {lab.folder}")
    (lab.folder / "logs").mkdir()
    order = write_order(lab)
    set_up(lab)
    states = [lab.folder / "meters" / f"{title}.json" for title in titles(lab)]
    with lab.serving("meters", "simulate", "meter", *states) as ports:
        places = write_places(lab, ports)
        order_id = provision(lab, order)
        inject(lab, places)
        package = deliver(lab, order_id)
        take(lab, package)
        with (
            service(lab),
            concentrator(lab),
        ):
            register(lab, places)
            communicate(lab, places)
    close(lab)
    tell(f"{STEPS} of {STEPS} steps")


@contextmanager
def service(lab: Lab) -> Iterator[None]:
    """Run the utility's HTTPS service, and tell the concentrator where."""
    with lab.serving("service", "--home", lab.home("utility"), "serve") as (port,):
        configure(lab.home("utility"), "service", "listen", f"{HOST}:{port}")
        configure(lab.home("concentrator"), "concentrator", "aim_url", f"https://{HOST}:{port}")
        yield


@contextmanager
def concentrator(lab: Lab) -> Iterator[None]:
    """Run the concentrator, and register it at the utility with the port that it listens on."""
    environment = {"HSMKM_CONCENTRATOR_POLL_SECONDS": "1"}
    command = ("--home", lab.home("concentrator"), "concentrator", "run")
    with lab.serving("concentrator", *command, environment=environment) as (port,):
        configure(lab.home("concentrator"), "concentrator", "listen", f"{HOST}:{port}")
        register_concentrator(lab, port)
        yield


# The command line.


def arguments() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Runs the seven steps with real processes.")
    parser.add_argument("--meters", type=int, default=3, metavar="N", help=f"1 to {MOST_METERS}, 3 by default")
    suites = "security suite of every meter; without it all three, in turns"
    parser.add_argument("--suite", type=int, choices=tuple(MODELS), help=suites)
    parser.add_argument("--profile", default="softhsm2", metavar="NAME", help="the kind of token: softhsm2, nss")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="an empty or new folder that keeps everything made")
    given = parser.parse_args()
    if not 1 <= given.meters <= MOST_METERS:
        parser.error(f"--meters must be 1 to {MOST_METERS}")
    if given.keep and given.keep.exists() and (not given.keep.is_dir() or any(given.keep.iterdir())):
        parser.error(f"--keep {given.keep} is not an empty folder")
    return given


@contextmanager
def folder(keep: Path | None) -> Iterator[Path]:
    """Give the folder to work in; without --keep it is removed at the end."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="hsmkm-demo-") as name:
            yield Path(name)
        return
    keep.mkdir(mode=0o700, parents=True, exist_ok=True)
    yield keep.resolve()
    say(f"demo: kept in {keep}; meters/ holds the keys in the virtual meters' memory")


def interrupt(number: int, _: object) -> None:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt(number)


def main() -> int:
    """Run the demo; 0 where all seven steps are done, 1 where one failed, 130 where it was interrupted."""
    signal.signal(signal.SIGTERM, interrupt)
    given = arguments()
    with folder(given.keep) as path:
        lab = Lab(path, given.meters, tuple(MODELS) if given.suite is None else (given.suite,), given.profile)
        try:
            demonstrate(lab)
        except (DemoError, HsmkmError) as error:
            say(f"error: {error}")
            return 1
        except KeyboardInterrupt:
            say("error: interrupted")
            return 130
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            lab.processes.stop_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
