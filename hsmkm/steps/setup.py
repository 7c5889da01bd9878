"""Makes a party's deployment: its home folder, its token with the long-lived keys, and its store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsmkm.config import PARTY_NAME, SETTINGS_FILE, Settings, load_settings
from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError, PolicyError, RefusedError
from hsmkm.pki.slots import slots_for
from hsmkm.steps.approve import check_approval, require_approval
from hsmkm.steps.party import Party, anchor_of, default_anchor, hands_of, token_settings
from hsmkm.steps.results import TokenMade
from hsmkm.store.store import Store
from hsmkm.token.doctor import Finding, declared, examine
from hsmkm.token.keyring import INTEGRITY
from hsmkm.token.profile import derives_on_host, load_profile
from hsmkm.token.session import SOFTHSM, TokenSession, init_token, open_session
from hsmkm.token.vault import Vault

NEW_KEYS = "token-init-keys"
SIGNING_PROFILES = ("digital-signature", "package-signing")
_TEMPLATE = """\
# One party's deployment. Every setting can also be given as HSMKM_<SECTION>_<KEY> in the environment.

[party]
name = "{name}"
role = "{role}"
system_title = "{system_title}"
flags = [{flags}]
suites = [0, 1, 2]            # security suites of its meters; 2 takes keys on P-384 beside those on P-256

[token]
profile = "{profile}"
uri = ""                      # filled in by `hsmkm token init`, or the URI of a token that exists
pin = "file:token/pin"        # env:NAME, file:PATH, fd:N, credential:NAME, command:..., prompt:
so_pin = "file:token/so-pin"

[store]
url = "sqlite:store.db"
anchor = {anchor:<20} # what shows that the database was restored: token, or file:PATH elsewhere

[policy]
kdf_on_host = {kdf_on_host:<5}           # an agreed key may pass through host memory once, where the token needs it
import_keys = true            # a model's initial keys, and line keys, may be imported in clear
max_counter_jump = 1000000
retention_days = 90
package_days = 30
attempts_per_day = 48
four_eyes = []                # actions that need a second officer's approval, or ["all"]
roles = false                 # only registered names act, each within its roles

[dlms]
timeout_seconds = 10
counter_block = 16

[workers]                     # of bulk work; 0: what suits the token
processes = 0
threads = 0                   # sessions of each process: 16 to 32 for an HSM behind a network
batch = 0                     # meters
"""
_ROLE_SECTIONS = {
    "authority": """
[pki]
policy_arc = ""               # your own arc for the certificates' policies, before the authorities are made
""",
    "utility": '\n[service]\nlisten = "127.0.0.1:8443"\n',
    "concentrator": """
[concentrator]
aim = ""                      # the party name of the AIM that gives the packages
aim_url = ""                  # https://host:port
listen = "127.0.0.1:4059"     # where the head end connects
kind = "relay"                # relay, or client (holds keys)
poll_seconds = 5

[concentrator.reading]        # what a client reads by itself
attributes = []               # such as ["1.0.1.8.0.255"]; none: it does not read
seconds = 900                 # a round begins so often
meter_seconds = 60            # the longest that one meter may take
file = "readings/readings.jsonl"
file_octets = 16777216        # then it is renamed, and
files = 8                     # so many older ones are kept
""",
}


def write_home(
    home: Path, name: str, role: str, system_title: str, flags: tuple[str, ...], profile: str = SOFTHSM
) -> Settings:
    """Make a home folder (mode 0700) with its settings, for a token of this profile.

    The policy lets an agreed key pass through the host only where such a token has no better way. Raises RefusedError
    where a home exists, InputError for bad values.
    """
    path = home / SETTINGS_FILE
    if path.exists():
        raise RefusedError(f"{path} exists", hint="choose another folder with --home, or edit the file")
    if not PARTY_NAME.fullmatch(name):
        raise InputError(f"{name!r} is not a party name", hint="letters, digits, space, dot, dash, at most 64")
    quoted = ", ".join(f'"{flag}"' for flag in flags)
    kind = load_profile(profile)
    text = _TEMPLATE.format(
        name=name,
        role=role,
        system_title=system_title,
        flags=quoted,
        profile=profile,
        kdf_on_host=str(derives_on_host(kind)).lower(),
        anchor=f'"{default_anchor(kind)}"',
    )
    made = not home.exists()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(text + _ROLE_SECTIONS.get(role, ""), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot make {path}: {error.strerror}", hint="choose another folder with --home") from error
    try:
        return load_settings(home)
    except InputError:
        path.unlink()
        if made:
            home.rmdir()
        raise


@contextmanager
def open_settings(home: Path) -> Iterator[Settings]:
    """Give a worker the settings alone, before there is a token to log in to."""
    yield load_settings(home)


def make_token(settings: Settings, actor: str, approval: str = "") -> TokenMade:
    """Make the token where no URI is set, then its storage, integrity and EC keys, and the store; runs in a worker.

    In a home that has a store already, storage keys that are missing are a matter of the policy.
    """
    if not settings.token.uri:
        uri = init_token(token_settings(settings), settings.party.name)
        set_in_file(settings.home / SETTINGS_FILE, "token", "uri", uri)
        settings = load_settings(settings.home)
    signing = () if settings.party.role in ("authority", "officer") else slots_for(settings.party.suites)
    curves = {one.name: one.curve for one in signing if one.profile in SIGNING_PROFILES}
    with open_session(token_settings(settings)) as session:
        vault = Vault(session)
        missing = _approved_keys(settings, session, actor, approval)
        vault.create_keys()
        for label, curve in curves.items():
            if not vault.has_ec_key(label):
                vault.create_ec_key(label, curve)
        Store.create(settings.store_url)
        made = TokenMade(settings.token.uri, ("storage:1", "gak-storage:1", "integrity:1", *curves))
        detail = {"uri": made.uri, "keys": list(made.keys)}
        with (
            Store.open(settings.store_url, vault, actor, anchor=anchor_of(settings, session)) as store,
            store.begin("token-init", settings.party.name, detail) as tx,
        ):
            if missing:
                party = Party(settings, session, vault, store, actor, hands_of(settings, vault))
                require_approval(tx, party, NEW_KEYS, settings.party.name, {"keys": missing}, approval)
    return made


def _approved_keys(settings: Settings, session: TokenSession, actor: str, approval: str) -> list[str]:
    """Give the kinds of keys that are missing beside a store, after a look at what approves them, where policy asks.

    PolicyError where nobody can be verified who approves. It is used up when they are made: no row gets a MAC before.
    """
    vault, name = Vault(session), settings.party.name
    missing = vault.keyring.missing()
    if not missing or not settings.policy.is_listed(NEW_KEYS) or not Store.exists(settings.store_url):
        return []
    if INTEGRITY in missing:
        hint = "its officers cannot be verified without that key: restore the token, or the store with its backup"
        raise PolicyError("the store was made with an integrity key that this token lacks", hint=hint)
    with Store.open(settings.store_url, vault, actor, anchor=anchor_of(settings, session)) as store:
        party = Party(settings, session, vault, store, actor, hands_of(settings, vault))
        check_approval(party, NEW_KEYS, name, {"keys": missing}, approval)
    return missing


def examine_token(settings: Settings) -> list[Finding]:
    """Try the token as `hsmkm token doctor` reports it, and declare the TLS key in its file; runs in a worker."""
    return [*examine(token_settings(settings)), *_tls_key_exposure(settings.home / "tls" / "key.pem")]


def _tls_key_exposure(path: Path) -> list[Finding]:
    if not path.exists():
        return []
    private = not path.stat().st_mode & 0o077
    detail = f"in {path}" if private else f"in {path}, which others may open"
    return [declared("TLS key", detail, f"chmod 600 {path}", ok=private)]


def set_in_file(path: Path, section: str, key: str, value: str) -> None:
    """Set one string of a settings file in its place, keeping the rest and the comments; replaces it atomically."""
    current, header, place = "", -1, -1
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if match := re.match(r"\s*\[([^\]]+)\]", line):
            current = match[1].strip()
            header = number if current == section else header
        elif current == section and re.match(rf"\s*{key}\s*=", line):
            place = number
    setting = f'{key} = "{value}"'
    if place >= 0:
        lines[place] = setting
    elif header >= 0:
        lines.insert(header + 1, setting)
    else:
        lines += [f"[{section}]", setting]
    replace_file(path, ("\n".join(lines) + "\n").encode())
