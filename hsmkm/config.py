"""Settings of a deployment (`hsmkm.toml` in its home folder) and of a meter model (`models/*.toml`).

A setting is read from the file, and from the environment where HSMKM_<SECTION>_<KEY> is set, which wins. Every fault of
a file is reported at once with its line. Nothing here is secret: a PIN is named by its source, never held.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from hsmkm.bounds import DAY, outside
from hsmkm.errors import Fault, InputError
from hsmkm.meter_model import FLAG_ID, MeterModel
from hsmkm.reading_settings import ReadingSettings
from hsmkm.toml_reader import Reader
from hsmkm.worker_settings import WorkerSettings

SETTINGS_FILE = "hsmkm.toml"
ROLES = ("factory", "line", "utility", "concentrator", "authority", "third-party", "officer")
CONCENTRATOR_KINDS = ("relay", "client")
PIN_SOURCES = ("env", "file", "fd", "credential", "command", "prompt")
SYSTEM_TITLE = re.compile(r"[0-9A-F]{16}")
PARTY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
"""Without a slash: another party's group is named PARTY/NAME."""

POLICY_ARC = re.compile(r"([01]\.([0-9]|[1-3][0-9])|2\.(0|[1-9][0-9]{0,9}))(\.(0|[1-9][0-9]{0,9})){1,20}")
OFFICER_CHANGE = "officer-change"
"""Who may approve: changing that needs an approval as soon as anything does."""

APPROVABLE = (
    "token-init-keys",
    "token-rotate",
    "token-migrate",
    "token-import-key",
    "token-destroy-key",
    "package-first-recipient",
    "meter-destroy",
    "meter-transfer",
    "store-restore",
    "store-recover",
    "trust-anchor",
    "ca-create",
    "campaign-start",
    OFFICER_CHANGE,
)
"""The actions for which the policy can demand a second officer's approval."""

_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_PASSWORD = re.compile(r"://[^/?#]*:[^/?#]*@|[?&]password=", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PartySettings:
    """Who this deployment is; `system_title` is 16 capital hex digits (8 octets), `flags` FLAG manufacturer ids.

    `suites` are the security suites of the meters it deals with: suite 2 takes keys on P-384 beside those on P-256.
    """

    name: str
    role: str
    system_title: str
    flags: tuple[str, ...] = ()
    suites: tuple[int, ...] = (0, 1, 2)

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        found = []
        if self.role not in ROLES:
            found.append(("role", f"unknown role {self.role!r}: use one of {', '.join(ROLES)}"))
        if not PARTY_NAME.fullmatch(self.name):
            found.append(("name", "a party name is of letters, digits, space, dot, dash, at most 64"))
        if not SYSTEM_TITLE.fullmatch(self.system_title):
            found.append(("system_title", "a system title is 16 capital hex digits, such as 5554490000000001"))
        found += [
            ("flags", f"{flag!r} is not a FLAG id of three capital letters")
            for flag in self.flags
            if not FLAG_ID.fullmatch(flag)
        ]
        unknown = [suite for suite in self.suites if suite not in (0, 1, 2)]
        return found + [("suites", f"a party deals with meters of suite 0, 1 or 2, not {suite}") for suite in unknown]


@dataclass(frozen=True, slots=True)
class TokenSection:
    """Where the token is (PKCS#11 URI by label and serial), the profile that describes it, and its PINs' sources.

    `answer_seconds`: how long one call of the token may take before the worker that made it is ended.
    """

    profile: str = "softhsm2"
    uri: str = ""
    pin: str = "file:token/pin"
    so_pin: str = "file:token/so-pin"
    module: str = ""
    answer_seconds: int = 30

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section; never a value that should have been the source of a PIN."""
        found = []
        profiles = sorted(path.stem for path in data_folder("tokens").glob("*.toml"))
        if self.profile not in profiles:
            found.append(("profile", f"unknown token profile {self.profile!r}: use one of {', '.join(profiles)}"))
        if self.uri and not self.uri.lower().startswith("pkcs11:"):
            found.append(("uri", "must be a PKCS#11 URI, such as pkcs11:token=factory;serial=0a1b"))
        found += outside(self, {"answer_seconds": DAY})
        sources = ", ".join(f"{kind}:" for kind in PIN_SOURCES)
        found += [
            (name, f"must name a source, one of {sources}, and never be the PIN itself")
            for name in ("pin", "so_pin")
            if getattr(self, name).partition(":")[0] not in PIN_SOURCES or ":" not in getattr(self, name)
        ]
        return found


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The database: `sqlite:PATH` relative to the home folder, or `postgresql://HOST/DATABASE`, without a password.

    `anchor`: where it is held how far the store is, so that a restored one shows: `token`, or `file:PATH`; empty
    for the token where it keeps data objects, else for the file store.anchor.
    """

    url: str = "sqlite:store.db"
    anchor: str = ""

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        kind, _, path = self.anchor.partition(":")
        found = []
        if self.anchor not in ("", "token") and not (kind == "file" and path):
            found.append(("anchor", f"{self.anchor!r} is neither token nor file:PATH"))
        if not re.match(r"sqlite:|postgresql(\+psycopg)?://", self.url):
            found.append(("url", "must be sqlite:PATH or postgresql://HOST/DATABASE"))
        if _PASSWORD.search(self.url):
            text = "must not hold a password: keep it in PGPASSFILE or in a service file (postgresql:///?service=NAME)"
            found.append(("url", text))
        return found


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What is allowed, and the bounds on what is believed.

    `kdf_on_host`: a key agreed on, for a package or with a meter, may pass through host memory once, where the token
    cannot derive it.
    `import_keys`: a model's initial keys, and line keys, may be imported in clear.
    `max_counter_jump`: how far a meter may move our invocation counter at once.
    `retention_days`: how long a factory keeps its copy after the receipt. `package_days`: how long a package is valid.
    `attempts_per_day`: associations tried on one meter in 24 hours while its state is unknown.
    `four_eyes`: the actions that need a second officer's approval, or "all". `approvals`: how many officers must sign
    one. `approval_hours`: how long one is valid. `roles`: only who is registered acts, within the roles given.
    """

    kdf_on_host: bool = True
    import_keys: bool = True
    max_counter_jump: int = 1_000_000
    retention_days: int = 90
    package_days: int = 30
    attempts_per_day: int = 48
    four_eyes: tuple[str, ...] = ()
    approvals: int = 1
    approval_hours: int = 72
    roles: bool = False

    def is_listed(self, action: str) -> bool:
        """Whether an action needs the approval of a second officer."""
        return (
            action in self.four_eyes or "all" in self.four_eyes or (action == OFFICER_CHANGE and bool(self.four_eyes))
        )

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        wrong = outside(
            self,
            {
                "max_counter_jump": (1 << 32) - 1,
                "retention_days": 36_500,
                "package_days": 366,
                "attempts_per_day": 1_000_000,
                "approvals": 100,
                "approval_hours": 366 * 24,
            },
        )
        unknown = [name for name in self.four_eyes if name not in (*APPROVABLE, "all")]
        known = ", ".join(APPROVABLE)
        return wrong + [("four_eyes", f"unknown action {name!r}: use all, or any of {known}") for name in unknown]


@dataclass(frozen=True, slots=True)
class PkiSettings:
    """The arc of object identifiers under which certificate policies stand; empty for the one that hsmkm has.

    An authority made from then on certifies under it, and it is understood beside the ones that hsmkm knows.
    """

    policy_arc: str = ""

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        arc = self.policy_arc
        if not arc or (POLICY_ARC.fullmatch(arc) and all(int(number) < 1 << 32 for number in arc.split("."))):
            return []
        return [("policy_arc", f"{arc!r} is not an object identifier of numbers below 2^32, such as 1.3.6.1.4.1.32473")]


@dataclass(frozen=True, slots=True)
class DlmsSettings:
    """How meters are spoken to: seconds before an answer is given up, and invocation counters reserved at a time."""

    timeout_seconds: int = 10
    counter_block: int = 16

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        return outside(self, {"timeout_seconds": DAY, "counter_block": 1 << 16})


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Where `hsmkm serve` listens, host:port; port 0 takes a free one and prints it."""

    listen: str = "127.0.0.1:8443"

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        return _listen_faults(self.listen)


@dataclass(frozen=True, slots=True)
class ConcentratorSettings:
    """A concentrator's AIM (its party name and https address), where the head end reaches it, its kind, its reading."""

    aim: str = ""
    aim_url: str = ""
    listen: str = "127.0.0.1:4059"
    kind: str = "relay"
    poll_seconds: int = 5
    reading: ReadingSettings = field(default_factory=ReadingSettings)

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        found = []
        if self.kind not in CONCENTRATOR_KINDS:
            found.append(("kind", f"unknown kind {self.kind!r}: use relay or client"))
        if self.aim_url and not _is_https(self.aim_url):
            found.append(("aim_url", "must be https://HOST:PORT"))
        found += outside(self, {"poll_seconds": DAY})
        if self.reading.attributes and self.kind != "client":
            found.append(
                ("kind", "must be client where reading.attributes are given: a relay holds no keys to read with")
            )
        return found + _listen_faults(self.listen)


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _listen_faults(listen: str) -> list[tuple[str, str]]:
    host, _, port = listen.rpartition(":")
    if host and _PORT.fullmatch(port) and 0 <= int(port) <= 65535:  # noqa: PLR2004 - TCP ports
        return []
    return [("listen", f"{listen!r} is not host:port")]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything in a home folder's hsmkm.toml."""

    home: Path
    party: PartySettings
    token: TokenSection = field(default_factory=TokenSection)
    store: StoreSettings = field(default_factory=StoreSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    pki: PkiSettings = field(default_factory=PkiSettings)
    dlms: DlmsSettings = field(default_factory=DlmsSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    service: ServiceSettings = field(default_factory=ServiceSettings)
    concentrator: ConcentratorSettings = field(default_factory=ConcentratorSettings)

    @property
    def store_url(self) -> str:
        """The database's URL with a relative SQLite path resolved against the home folder."""
        scheme, _, path = self.store.url.partition(":")
        if scheme == "sqlite" and not path.startswith("//"):
            return f"sqlite:{self.home / path}"
        return self.store.url


def load_settings(home: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """Read HOME/hsmkm.toml; InputError names every fault with its line."""
    path = home / SETTINGS_FILE
    if not path.is_file():
        raise InputError(f"no {SETTINGS_FILE} in {home}", hint="make a home folder with: hsmkm --home DIR init")
    reader = Reader(str(path), _read_text(path), os.environ if environment is None else environment)
    return reader.finish(reader.section(Settings, "", reader.table, {"home": home.resolve()}))


def _read_text(path: Path) -> str:
    try:
        octets = path.read_bytes()
        return octets.decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint="see whether the file is yours") from error
    except UnicodeDecodeError as error:
        fault = Fault(str(path), octets[: error.start].count(b"\n") + 1, 0, "not UTF-8")
        raise InputError(f"{path} has a wrong encoding", [fault], "write it as UTF-8") from error


def data_folder(name: str) -> Path:
    """Find `tokens` or `models`: inside the installed package, else at the top of the source tree."""
    installed = Path(str(resources.files("hsmkm"))) / name
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / name


def load_model(name: str, home: Path | None = None) -> MeterModel:
    """Read a meter model's settings from HOME/models, else from those shipped; the file name is the model's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"{name!r} is not a model name", hint="letters, digits, dot, dash and underscore, at most 64")
    folders = [*([home / "models"] if home else []), data_folder("models")]
    for folder in folders:
        path = folder / f"{name}.toml"
        if path.is_file():
            return read_model(path)
    raise InputError(f"unknown meter model {name!r}", hint=f"put its settings into {folders[0] / (name + '.toml')}")


def read_model(path: Path) -> MeterModel:
    """Read one model file; InputError names every fault with its line."""
    return _model_of(path, _read_text(path))


@lru_cache(maxsize=64)
def _model_of(path: Path, text: str) -> MeterModel:
    reader = Reader(str(path), text, {})
    further = reader.table.pop("associations", {})
    first = reader.section(MeterModel, "", reader.table, {"name": path.stem, "others": ()})
    checks = list(reader.checks)
    others = _associations(reader, further, first or MeterModel(path.stem, ()))
    if first is None:
        reader.checks = checks
        return reader.finish(first)
    return reader.finish(replace(first, others=tuple(others)))


def _associations(reader: Reader, further: object, first: MeterModel) -> list[MeterModel]:
    """Read the tables [associations.NAME]; their faults are the reader's."""
    if not isinstance(further, dict):
        reader.fault("", "associations", "must hold tables such as [associations.reading]")
        return []
    made: list[MeterModel] = []
    for name, table in further.items():
        shared = {key: getattr(first, key) for key in ("name", "flags", "suites", "others")}
        one = reader.section(
            MeterModel, f"associations.{name}", table, shared | {"association_name": name}, _base(first, table)
        )
        if one is not None:
            reader.checks.append((f"associations.{name}", partial(_clashes, one, (first, *made))))
            made.append(one)
    return made


def _base(first: MeterModel, table: object) -> MeterModel:
    """Give what an association takes over: names that follow from the number of a Security Setup are not among it."""
    section = table.get("security_setup") if isinstance(table, dict) else None
    number = section.get("number") if isinstance(section, dict) else None
    if type(number) is not int or number == first.security_setup.number:
        return first
    setup = replace(first.security_setup, logical_name=f"0.0.43.0.{number}.255")
    return replace(first, security_setup=setup, counter=replace(first.counter, logical_name=f"0.0.43.1.{number}.255"))


def _clashes(one: MeterModel, others: Sequence[MeterModel]) -> list[tuple[str, str]]:
    """Name what two associations must not share: the name, and Security Setup with client, which tell key sets."""
    found = []
    for other in others:
        if one.association_name == other.association_name:
            found.append(("association_name", "the first association has this name"))
        if one.place == other.place:
            text = f"association {other.association_name} has the same client and Security Setup number"
            found.append(("addressing.client_sap", text))
        elif one.keys_at == other.keys_at:
            text = f"association {other.association_name} has the same object, and so the same keys: give each its own"
            found.append(("security_setup.logical_name", text))
    return found
