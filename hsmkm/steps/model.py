"""Meter models: their settings, and the initial keys that a model's meters come with, imported once into the token."""

from __future__ import annotations

import re
import secrets
import stat
from pathlib import Path

from hsmkm.config import load_model
from hsmkm.errors import Fault, InputError, PolicyError
from hsmkm.steps.party import Party
from hsmkm.store import models
from hsmkm.store.key_set import IDENTITY_OCTETS, KEY_OCTETS, StoredKey
from hsmkm.store.models import ModelKeys
from hsmkm.token.types import KeyRole

MAX_KEY_FILE = 4096
_LINE = re.compile(rb"\s*(\w+)\s*=\s*\"?([0-9A-Fa-f]*)\"?\s*(#.*)?")


def import_keys(party: Party, name: str, suite: int, path: Path) -> list[str]:
    """Import a model's initial keys from a file of lines `role = hex`; gives the roles imported.

    The file must be readable by its owner alone; it is not removed. Raises PolicyError where policy.import_keys or the
    file's mode forbids it, InputError that names each wrong line, RefusedError where the model has keys already.
    """
    if not party.settings.policy.import_keys:
        raise PolicyError("the policy forbids to import keys in clear", hint="see policy.import_keys in hsmkm.toml")
    model = load_model(name, party.home)
    if suite not in model.suites:
        raise InputError(f"model {name} has no security suite {suite}")
    values = read_key_file(path, KEY_OCTETS[suite])
    keys = []
    for role, value in values.items():
        with party.vault.import_key(role, suite, value) as key:
            keys.append(StoredKey(role, secrets.token_bytes(IDENTITY_OCTETS), party.vault.seal(key).wrapped))
    made = ModelKeys(name, suite, party.vault.storage_key, tuple(keys))
    roles = sorted(role.value for role in values)
    with party.store.begin("model-import-keys", name, {"suite": suite, "roles": roles}) as tx:
        models.add_keys(tx, models.authenticate(party.vault, made))
    return roles


def read_key_file(path: Path, octets: int) -> dict[KeyRole, bytearray]:
    """Read `guek`, `gak`, `master` and, where the meters have one, `gbek`, each `octets` long, in hex."""
    content = _private_file(path)
    found: dict[KeyRole, bytearray] = {}
    faults: list[Fault] = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        match = _LINE.fullmatch(line)
        role = match[1].decode("ascii", "replace") if match else ""
        if match is None or role not in set(KeyRole):
            faults.append(Fault(str(path), number, 0, "must be `guek`, `gbek`, `gak` or `master`, `=`, and hex digits"))
        elif match.end(2) - match.start(2) != 2 * octets:
            faults.append(
                Fault(str(path), number, 0, f"a key of this suite has {2 * octets} hex digits ({octets} octets)")
            )
        elif KeyRole(role) in found:
            faults.append(Fault(str(path), number, 0, f"{role} stands twice"))
        else:
            found[KeyRole(role)] = _from_hex(line, match.start(2), octets)
    content[:] = bytes(len(content))
    missing = {KeyRole.GUEK, KeyRole.GAK, KeyRole.MASTER} - found.keys()
    faults += [Fault(str(path), 0, 0, f"{role.value} is missing") for role in sorted(missing)]
    if faults:
        for value in found.values():
            value[:] = bytes(len(value))
        raise InputError(f"{path} has {len(faults)} fault(s)", faults, "nothing was imported")
    return found


def _private_file(path: Path) -> bytearray:
    try:
        with path.open("rb", buffering=0) as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                raise PolicyError(f"{path} can be read by others (mode {mode:04o})", hint=f"chmod 600 {path}")
            content = bytearray(MAX_KEY_FILE)
            return content[: file.readinto(content) or 0]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _from_hex(line: bytearray, start: int, octets: int) -> bytearray:
    """Decode without an immutable copy of the key on the way."""
    value = bytearray(octets)
    for place in range(octets):
        high, low = line[start + 2 * place], line[start + 2 * place + 1]
        value[place] = _DIGITS[high] << 4 | _DIGITS[low]
    return value


_DIGITS = {ord(digit): int(digit, 16) for digit in "0123456789abcdefABCDEF"}
