"""Meter models: their settings, and the initial keys that a model's meters come with, imported once into the token."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from hsmkm.config import load_model
from hsmkm.errors import Fault, InputError, PolicyError
from hsmkm.meter_model import MeterModel
from hsmkm.steps.credentials import secret_roles
from hsmkm.steps.party import Party
from hsmkm.store import models
from hsmkm.store.key_set import IDENTITY_OCTETS, ROLE_NAMES, StoredKey
from hsmkm.store.models import ModelKeys
from hsmkm.store.store import Transaction
from hsmkm.token.types import KEY_OCTETS, SECRET_OCTETS, KeyRole, MeterRole, Sealed, SecretRole

MAX_KEY_FILE = 4096
_BLANK = re.compile(rb"\s*(#.*)?")
_LINE = re.compile(rb"\s*([a-z]+)\s*=\s*\"?([0-9A-Fa-f]*)\"?\s*(#.*)?")


def choose_suite(model: MeterModel, suite: int | None) -> int:
    """Give the suite that was named, or else the model's one; InputError where it has several."""
    if suite is not None:
        return suite
    if len(model.suites) != 1:
        suites = ", ".join(map(str, model.suites))
        raise InputError(f"the model has the security suites {suites}", hint="say which one the keys are of: --suite")
    return model.suites[0]


def import_keys(party: Party, name: str, suite: int, path: Path, association: str = "") -> list[str]:
    """Import a model's initial keys from a file of lines `role = hex`; gives the roles imported.

    They are those of the first association, and of each other one without keys of its own. The file must be readable by
    its owner alone; it is not removed. Raises PolicyError where policy.import_keys or the file's mode forbids it,
    InputError that names each wrong line, RefusedError where the association has keys already.
    """
    if not party.settings.policy.import_keys:
        raise PolicyError("the policy forbids to import keys in clear", hint="see policy.import_keys in hsmkm.toml")
    whole = load_model(name, party.home)
    model = whole.association(association)
    owner = name if model.place == whole.place else models.name_for(name, association)
    if suite not in model.suites:
        raise InputError(f"model {name} has no security suite {suite}")
    sealed = _sealed(party, suite, read_key_file(path, KEY_OCTETS[suite], secret_roles(model)))
    roles = sorted(role.value for role in sealed)
    detail = {"suite": suite, "roles": roles} | ({"association": association} if association else {})
    with party.store.begin("model-import-keys", name, detail) as tx:
        made = ModelKeys(owner, suite, party.vault.storage_key, _with_identities(party, tx, sealed))
        models.add_keys(tx, made)
    return roles


def _sealed(party: Party, suite: int, values: Mapping[MeterRole, bytearray]) -> dict[MeterRole, Sealed]:
    """Import keys and seal them; every value is wiped, also where one is not taken."""
    sealed = {}
    try:
        for role, value in values.items():
            with party.vault.import_key(role, suite, value) as key:
                sealed[role] = party.vault.seal(key)
    finally:
        for value in values.values():
            value[:] = bytes(len(value))
    return sealed


def _with_identities(party: Party, tx: Transaction, sealed: Mapping[MeterRole, Sealed]) -> tuple[StoredKey, ...]:
    """Give each key its identity; one that is known, from another model or in another role, keeps the one it has."""
    identities = {wrapped: identity for identity, wrapped in _known_keys(party, tx)}
    keys = []
    for role, item in sealed.items():
        identity = identities.setdefault(item.wrapped, secrets.token_bytes(IDENTITY_OCTETS))
        keys.append(StoredKey(role, identity, item.wrapped))
    return tuple(keys)


def _known_keys(party: Party, tx: Transaction) -> Iterator[tuple[bytes, bytes]]:
    """Give identity and wrapping of every initial key under the newest storage key: there equal octets are one key."""
    for keys in models.every_keys(tx):
        for key in keys.keys:
            wrapped = key.wrapped
            if keys.storage_key != party.vault.storage_key:
                wrapped = party.vault.reseal(key.role, Sealed(keys.storage_key, wrapped), keys.suite).wrapped
            yield key.identity, wrapped


def read_key_file(path: Path, octets: int, secret: tuple[SecretRole, ...] = ()) -> dict[MeterRole, bytearray]:
    """Read `guek`, `gak`, `master` and, where the meters have one, `gbek`, each `octets` long, in hex.

    The secrets that the model's mechanism takes, `lls` or `hls`, have 8 to 64 octets, a multiple of 8.
    """
    content = private_file(path, "give a file of lines `role = hex`")
    reader = _KeyFile(str(path), octets, secret)
    try:
        with memoryview(content) as view:
            start = 0
            for number in range(1, content.count(b"\n") + 2):
                end = content.find(b"\n", start)
                end = len(content) if end < 0 else end
                reader.line(number, view[start:end])
                start = end + 1
        return reader.finish()
    finally:
        content[:] = bytes(len(content))


class _KeyFile:
    """Reads lines of a key file, whose octets stay where they are until the caller wipes them."""

    def __init__(self, source: str, octets: int, secret: tuple[SecretRole, ...]) -> None:
        self.source = source
        self.octets = octets
        self.secret = secret
        self.found: dict[MeterRole, bytearray] = {}
        self.faults: list[Fault] = []

    def fault(self, line: int, text: str) -> None:
        """Note what is wrong with a line."""
        self.faults.append(Fault(self.source, line, 0, text))

    def line(self, number: int, line: memoryview) -> None:
        """Read one line: `role = hex`, a comment, or nothing."""
        if _BLANK.fullmatch(line):
            return
        match = _LINE.fullmatch(line)
        role = ROLE_NAMES.get(bytes(line[match.start(1) : match.end(1)]).decode("ascii")) if match else None
        if match is None or role is None:
            self.fault(number, "must be `guek`, `gbek`, `gak`, `master`, `lls` or `hls`, `=`, and hex digits")
            return
        octets, odd = divmod(match.end(2) - match.start(2), 2)
        reason = "its hex digits are odd" if odd else self.reason(role, octets)
        if reason:
            self.fault(number, reason)
        else:
            self.found[role] = from_hex(line, match.start(2), octets)

    def reason(self, role: MeterRole, octets: int) -> str:
        """Say why a key of this length is not taken."""
        if role in self.found:
            return f"{role} stands twice"
        if not isinstance(role, SecretRole):
            wrong = f"a key of this suite has {2 * self.octets} hex digits ({self.octets} octets)"
            return "" if octets == self.octets else wrong
        if role not in self.secret:
            return f"the model's mechanism has no {role} secret"
        return "" if octets in SECRET_OCTETS else "a secret has 8 to 64 octets, a multiple of 8"

    def finish(self) -> dict[MeterRole, bytearray]:
        """Give the keys, or wipe them and raise every fault."""
        needed: set[MeterRole] = {KeyRole.GUEK, KeyRole.GAK, KeyRole.MASTER, *self.secret}
        missing = needed - self.found.keys()
        for role in sorted(missing):
            self.fault(0, f"{role.value} is missing")
        if self.faults:
            for value in self.found.values():
                value[:] = bytes(len(value))
            raise InputError(f"{self.source} has {len(self.faults)} fault(s)", self.faults, "nothing was imported")
        return self.found


def private_file(path: Path, hint: str) -> bytearray:
    """Read a file of its owner alone into memory that can be wiped."""
    try:
        with path.open("rb", buffering=0) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise PolicyError(f"{path} can be read by others (mode {mode:04o})", hint=f"chmod 600 {path}")
            content = bytearray(MAX_KEY_FILE)
            length = file.readinto(content) or 0
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint=hint) from error
    del content[length:]
    return content


def from_hex(line: memoryview, start: int, octets: int) -> bytearray:
    """Decode without an immutable copy of the key on the way."""
    value = bytearray(octets)
    for place in range(octets):
        high, low = line[start + 2 * place], line[start + 2 * place + 1]
        value[place] = _DIGITS[high] << 4 | _DIGITS[low]
    return value


_DIGITS = {ord(digit): int(digit, 16) for digit in "0123456789abcdefABCDEF"}
