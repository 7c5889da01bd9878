"""Works through production orders on a provisioning line, each from CSV file to delivery package.

An order *.csv that appears in FOLDER is claimed (moved to FOLDER/working), its meters are provisioned, those with an
address are injected, several at once and each by a process of its own, those in doubt are resolved, and the delivery
package for the utility is exported. The order then lies in FOLDER/done or FOLDER/failed beside its report, NAME.json.

Everything is done with the command `hsmkm`, whose every step may be done again: after a crash, a stop or a failure the
order goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from line_report import ACTIVE, DONE, FAILED, NO_ADDRESS, UNKNOWN, WORKING, Report, Row, free, now, write

USAGE, UNREACHABLE, PARTLY = 2, 3, 7
"""Exit codes of `hsmkm`, and of this program."""

NOT_OF_A_METER = (USAGE, UNREACHABLE, 4, 5, 130)
"""Exit codes that say nothing of a meter: usage, token, login, policy, interrupted."""

HELD, HELD_SECONDS = " is held by ", 60
"""What `hsmkm` says of a meter whose lease another process has, and how often that is tried, a second between."""

PACKAGE_KEY_SETS = 10_000
ROUNDS = 3
"""How often a meter in doubt is resolved before the order is given up for now."""

EPILOG = """\
Exit code: 0 when stopped, or with --once when every order is done; 7 with --once when an order failed; else that of the
command which cannot go on: 1 refused, 2 usage, 3 token unreachable, 4 login, 5 policy, 6 integrity. The order in hand
stays in FOLDER/working and goes on at the next start. Without --once, 1 and 3 are tried again after SECONDS.
See docs/provision-line.md.
"""


class CannotGoOnError(Exception):
    """The order in hand is not at fault: nothing is decided about it, and it stays where it is."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class OrderError(Exception):
    """The order cannot be done as it is; `faults` are the lines that say why."""

    def __init__(self, text: str, hint: str, faults: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.hint = hint
        self.faults = list(faults)


@dataclass(frozen=True)
class Answer:
    """How one run of `hsmkm` ended."""

    code: int
    rows: list[Row]
    talk: list[str]

    def said(self, label: str) -> list[str]:
        """Give the lines of stderr that begin with this label."""
        return [line.partition(": ")[2] for line in self.talk if line.startswith(f"{label}: ")]

    @property
    def error(self) -> str:
        """The error in one line."""
        return "; ".join(self.said("error")) or f"hsmkm ended with {self.code}"

    @property
    def hint(self) -> str:
        """What hsmkm advises."""
        return "; ".join(self.said("hint"))


class Line:
    """One provisioning line: a factory's home, a folder of orders, and who the packages are for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.home: Path = options.home
        self.folder: Path = options.orders
        self.line: str = options.line
        self.utility: str = options.to
        self.addresses: Path | None = options.addresses
        self.parallel: int = options.parallel
        self.actor: str = options.actor
        self.stopping = threading.Event()

    def hsmkm(self, *arguments: str) -> Answer:
        """Run the command, in a process group of its own: a Ctrl-C at the terminal breaks off no key transfer."""
        command = [find_hsmkm(), "--home", str(self.home), "--output", "json"]
        command += ["--actor", self.actor] if self.actor else []
        command += arguments
        done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, check=False)  # noqa: S603 - our own command, no shell
        try:
            rows = json.loads(done.stdout or "[]")
        except ValueError as error:
            raise CannotGoOnError(done.returncode or 1, f"hsmkm {arguments[0]} gave no JSON") from error
        return Answer(done.returncode, rows, done.stderr.splitlines())

    def must(self, *arguments: str) -> list[Row]:
        """Run a command that a good order never makes fail."""
        answer = self.hsmkm(*arguments)
        if answer.code:
            raise CannotGoOnError(answer.code, answer.error)
        return answer.rows

    def check(self) -> None:
        """Refuse to touch an order for parties that are not registered, or with a home that cannot be read."""
        roles = {row["party"]: row["role"] for row in self.must("party", "list")}
        for name, role in ((self.line, "line"), (self.utility, "utility")):
            if roles.get(name) != role:
                raise CannotGoOnError(USAGE, f"no party {name!r} of role {role} is registered: hsmkm party add")

    def pass_once(self) -> int:
        """Work through every order that is there; gives how many failed."""
        failed = 0
        self.sweep()
        for path in self.waiting():
            if self.stopping.is_set():
                break
            places = read_addresses(self.addresses)
            failed += self.finish(self.claim(path), places)
        return failed

    def sweep(self) -> None:
        """Remove reports in `working` whose order was filed, with its report, just before a crash."""
        for path in (self.folder / WORKING).glob("*.json"):
            if not path.with_suffix(".csv").exists():
                path.unlink()

    def waiting(self) -> list[Path]:
        """List the orders: those that were begun, then those that came, oldest first."""
        begun = sorted((self.folder / WORKING).glob("*.csv"))
        names = {path.name for path in begun}
        came = [path for path in self.folder.glob("*.csv") if path.is_file() and path.name not in names]
        return begun + sorted(came, key=lambda path: (path.stat().st_mtime, path.name))

    def claim(self, path: Path) -> Path:
        """Move an order to `working`, where no other line takes it."""
        claimed = self.folder / WORKING / path.name
        if path != claimed:
            path.rename(claimed)
            talk(f"{path.name}: claimed")
        return claimed

    def finish(self, path: Path, places: dict[str, str]) -> int:
        """Bring one order to its end and file it; 1 where it failed."""
        report = self.report(path)
        if report.state == WORKING:
            try:
                self.work(path, report, places)
                report.state = DONE
            except OrderError as error:
                report.state = FAILED
                report.error, report.hint, report.faults = str(error), error.hint, error.faults
            report.finished = now()
            self.save(report)
        self.file(path, report)
        return int(report.state == FAILED)

    def report(self, path: Path) -> Report:
        """Take up the report of an order that was begun, or begin one."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        kept = self.folder / WORKING / f"{path.stem}.json"
        if kept.is_file():
            found = Report(**json.loads(kept.read_text(encoding="utf-8")))
            if found.id == digest:
                return found
        return Report(path.name, digest, self.line, self.utility, now())

    def work(self, path: Path, report: Report, places: dict[str, str]) -> None:
        """Provision, inject, resolve, export: what was done before is found done."""
        fresh = self.provision(path, report)
        report.meters = self.listed(report.id, places)
        if not report.injection:
            report.injection = [path for path, _ in self.sent("injection", self.line, report)]
        self.save(report)
        self.inject_all(report)
        self.save(report)
        lost = [row for row in report.meters if row["state"] not in (ACTIVE, NO_ADDRESS)]
        if lost:
            raise OrderError(
                f"{len(lost)} of {len(report.meters)} meters are not injected, and nothing was delivered",
                "put the order back into the folder when they answer: it goes on where it stopped",
                [f"{row['meter']}: {row['detail']}" for row in lost],
            )
        self.export(report, fresh=fresh)

    def provision(self, path: Path, report: Report) -> bool:
        """Make the keys; gives whether that was done just now."""
        answer = self.hsmkm("meter", "provision", str(path), "--line", self.line)
        if answer.code == 1:
            raise OrderError(answer.error, answer.hint, [*answer.said("fault"), *answer.said("reason")])
        if answer.code:
            raise CannotGoOnError(answer.code, answer.error)
        report.injection += [row["package"] for row in answer.rows]
        self.save(report)
        talk(f"{report.order}: provisioned" if answer.rows else f"{report.order}: was provisioned before")
        return bool(answer.rows)

    def listed(self, order: str, places: dict[str, str]) -> list[Row]:
        """List the order's meters, each with its address."""
        found: list[Row] = []
        after: list[str] = []
        while rows := self.must("meter", "list", "--order", order, "--limit", str(PACKAGE_KEY_SETS), *after):
            found += rows
            after = ["--after", rows[-1]["meter"]]
        key_sets = {model: self.key_sets(model) for model in {row["model"] for row in found}}
        return [
            meter_row(row, places.get(row["meter"]) or places.get(row["serial"], ""), key_sets[row["model"]])
            for row in found
        ]

    def key_sets(self, model: str) -> int:
        """Tell how many key sets a meter of a model has, one for each association."""
        (names,) = (row["value"] for row in self.must("model", "show", model) if row["setting"] == "associations")
        return len(names.split())

    def inject_all(self, report: Report) -> None:
        """Inject every meter that has an address, several at once."""
        places = [place for place, row in enumerate(report.meters) if row["address"]]
        pool = ThreadPoolExecutor(self.parallel)
        try:
            done = pool.map(self.inject, [report.meters[place] for place in places])
            for place, row in zip(places, done, strict=True):
                report.meters[place] = row
                talk(f"{report.order}: {row['meter']} {row['state']}: {row['detail']}")
        finally:
            pool.shutdown(cancel_futures=True)

    def inject(self, row: Row) -> Row:
        """Inject one meter, and resolve it while it answers and is in doubt; the row says how that ended."""
        meter = row["meter"]
        answer = self.meter("inject", meter, "--address", row["address"])
        in_doubt = answer.code != 0 and self.in_doubt(meter)
        for _ in range(ROUNDS):
            if not in_doubt:
                break
            answer = self.resolve(meter)
            in_doubt = answer.code != 0 and self.in_doubt(meter)
            if answer.code not in (0, PARTLY):
                break
        if answer.code:
            return row | {"state": UNKNOWN if in_doubt else FAILED, "detail": answer.error}
        held = sorted(outcome["generation"] for outcome in answer.rows)
        details = dict.fromkeys(outcome["detail"] for outcome in answer.rows)
        return row | {"state": ACTIVE, "generation": held[0] if len(held) == 1 else held, "detail": "; ".join(details)}

    def resolve(self, meter: str) -> Answer:
        """Find out what a meter in doubt holds; one that had to be left half-way is injected to the end."""
        answer = self.meter("resolve", meter, noun="")
        return answer if answer.code else self.meter("inject", meter)

    def meter(self, verb: str, meter: str, *more: str, noun: str = "meter") -> Answer:
        """Run a command on one meter; stops where the meter is not what is at fault, or the line is to stop."""
        arguments = (*([noun] if noun else []), verb, meter, *more)
        for waited in range(HELD_SECONDS):
            if self.stopping.is_set():
                raise CannotGoOnError(0, "stopped")
            answer = self.hsmkm(*arguments)
            if answer.code != 1 or HELD not in answer.error:
                break
            if not waited:
                talk(f"{meter}: another process speaks with it, waiting")
            self.stopping.wait(1)
        if answer.code in NOT_OF_A_METER or answer.code < 0:
            raise CannotGoOnError(answer.code, f"{meter}: {answer.error}")
        return answer

    def in_doubt(self, meter: str) -> bool:
        """Tell whether a renewal of the meter has not ended."""
        rows = self.must("meter", "show", meter)
        return any(row["kind"] == "renewal" and row["state"] not in ("active", "abandoned") for row in rows)

    def export(self, report: Report, *, fresh: bool) -> None:
        """Export the delivery packages that are not there yet, of at most 10,000 key sets each."""
        before = [] if fresh else list(self.sent("delivery", self.utility, report))
        report.delivery = []
        for rows in chunks(report.meters):
            path = next((path for path, given in before if same_meters(rows, given)), None)
            report.delivery.append(path or self.deliver(rows))
        self.save(report)
        talk(f"{report.order}: delivery package {' '.join(report.delivery)}")

    def deliver(self, rows: Sequence[Row]) -> str:
        """Export one delivery package."""
        names = [row["meter"] for row in rows]
        (sent,) = self.must("package", "export", *names, "--to", self.utility)
        return str(sent["file"])

    def sent(self, purpose: str, to: str, report: Report) -> Iterator[tuple[str, dict[str, list[int]]]]:
        """Find packages of meters of this order that an earlier run made, newest first, with their generations."""
        ordered = {row["meter"] for row in report.meters}
        for sent in reversed(self.must("package", "list")):
            path = self.home.absolute() / "packages" / f"{sent['package']}.p7m"
            wanted = (sent["direction"], sent["purpose"], sent["peer"]) == ("sent", purpose, to)
            if wanted and sent["meters"] <= len(ordered) and path.is_file():
                given: dict[str, list[int]] = {}
                for row in self.must("package", "inspect", str(path)):
                    given.setdefault(row["meter"], []).append(row["generation"])
                if given.keys() <= ordered:
                    yield str(path), given

    def save(self, report: Report) -> None:
        """Write the report beside the order in `working`."""
        write(self.folder / WORKING / f"{Path(report.order).stem}.json", report)

    def file(self, path: Path, report: Report) -> None:
        """Move an order and its report to where it ended, under a name that is free there.

        The report is written there first and the order moves last: broken off between, the order is filed again.
        """
        target = free(self.folder / report.state, path.stem, report)
        write(target.with_suffix(".json"), report)
        path.rename(target)
        (self.folder / WORKING / f"{path.stem}.json").unlink(missing_ok=True)
        talk(f"{report.order}: {report.state}" + (f": {report.error}" if report.error else ""))
        for fault in report.faults:
            talk(f"{report.order}: fault: {fault}")
        ended = {"order": report.order, "state": report.state, "report": str(target.with_suffix(".json"))}
        sys.stdout.write(json.dumps(ended) + "\n")
        sys.stdout.flush()


def find_hsmkm() -> str:
    """Find the command: beside this interpreter, else on PATH."""
    beside = Path(sys.executable).with_name("hsmkm")
    found = str(beside) if beside.is_file() else shutil.which("hsmkm")
    if found is None:
        raise CannotGoOnError(USAGE, "the command hsmkm is not installed: scripts/setup")
    return found


def same_meters(rows: Sequence[Row], given: dict[str, list[int]]) -> bool:
    """Tell whether a package speaks of just these meters, and of the generations that they hold.

    Those of a meter's associations only ever rise, so that it does not matter which is of which.
    """
    wanted = {row["meter"]: row["generation"] for row in rows}
    held = {name: found if isinstance(found, list) else [found] for name, found in wanted.items()}
    return given.keys() == held.keys() and all(held[name] in ([None], sorted(given[name])) for name in held)


def chunks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Divide meters so that the key sets of each part fit into one package."""
    part: list[Row] = []
    room = PACKAGE_KEY_SETS
    for row in rows:
        if row["key_sets"] > room:
            yield part
            part, room = [], PACKAGE_KEY_SETS
        part.append(row)
        room -= row["key_sets"]
    if part:
        yield part


def meter_row(row: Row, address: str, key_sets: int) -> Row:
    """Begin a meter's row of the report."""
    state = WORKING if address else NO_ADDRESS
    detail = "" if address else "not injected from here: its keys are in the injection package"
    named = {"meter": row["meter"], "serial": row["serial"], "address": address}
    return named | {"key_sets": key_sets, "state": state, "generation": None, "detail": detail}


def read_addresses(path: Path | None) -> dict[str, str]:
    """Read lines METER,HOST:PORT, where METER is a system title or a serial number; # begins a comment."""
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotGoOnError(1, f"cannot read {path}: {type(error).__name__}") from error
    found: dict[str, str] = {}
    for number, text in enumerate(lines, 1):
        name, comma, address = (part.strip() for part in text.partition(","))
        if not name or name.startswith("#"):
            continue
        if not comma or ":" not in address or name in found:
            raise CannotGoOnError(1, f"{path}:{number}: must be METER,HOST:PORT, each meter once")
        found[name] = address
    return found


def talk(text: str) -> None:
    """Say what happens, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only line on a folder."""
    for name in (WORKING, DONE, FAILED):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with (folder / ".provision-line.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotGoOnError(1, f"another provision-line works on {folder}") from None
        yield


def run(line: Line, poll: float, *, once: bool) -> int:
    """Work until stopped, or once through; gives the exit code."""
    with alone(line.folder):
        line.check()
        while not line.stopping.is_set():
            try:
                failed = line.pass_once()
            except CannotGoOnError as error:
                if line.stopping.is_set():
                    break
                if once or error.code not in (1, UNREACHABLE):
                    raise
                talk(f"waiting: {error}")
            else:
                if once:
                    return PARTLY if failed else 0
            line.stopping.wait(poll)
    return 0


def parse(arguments: Sequence[str] | None = None) -> tuple[Line, argparse.Namespace]:
    """Read the command line."""
    text = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="provision-line",
        description=text[0] + "\n\n" + text[2],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--home", type=Path, required=True, metavar="FACTORY", help="home folder of the factory")
    parser.add_argument("--orders", type=Path, required=True, metavar="FOLDER", help="folder that orders *.csv come to")
    parser.add_argument("--line", required=True, metavar="PARTY", help="line equipment that injection packages are for")
    parser.add_argument("--to", required=True, metavar="UTILITY", help="utility that delivery packages are for")
    parser.add_argument(
        "--addresses", type=Path, metavar="FILE", help="lines METER,HOST:PORT; read for each order anew"
    )
    parser.add_argument("--parallel", type=int, default=2, metavar="N", help="meters injected at once (default 2)")
    parser.add_argument("--once", action="store_true", help="work through what is there, then end")
    parser.add_argument("--poll", type=float, default=5, metavar="SECONDS", help="look for orders so often (default 5)")
    parser.add_argument(
        "--actor", default="", metavar="NAME", help="who acts, for the audit log (default: the login name)"
    )
    options = parser.parse_args(arguments)
    if options.parallel < 1 or options.poll <= 0:
        parser.error("--parallel must be 1 or more, and --poll above 0")
    return Line(options), options


def main() -> int:
    """Run the line and give the exit code."""
    line, options = parse()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: line.stopping.set())
    try:
        return run(line, options.poll, once=options.once)
    except CannotGoOnError as error:
        talk(f"error: {error}")
        return error.code if error.code >= 0 else 1


if __name__ == "__main__":
    sys.exit(main())
