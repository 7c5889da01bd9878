"""Addresses of tokens (RFC 7512) and sources of PINs.

A token is named by its label and serial number, never by a slot id: slot ids change when a token is added. A PIN is
named by where it is, never given: an argument or a setting would leave it in process lists, logs and backups.
"""

from __future__ import annotations

import getpass
import os
import shlex
import stat
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from hsmkm.errors import InputError, LoginError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PIN_MAX_OCTETS = 255
COMMAND_SECONDS = 60
_SAFE = "-._~"
_FIELDS = {"token": "token", "serial": "serial", "manufacturer": "manufacturer", "model": "model"}


@dataclass(frozen=True, slots=True)
class TokenUri:
    """The part of an RFC 7512 URI that names a token; an empty field matches every token."""

    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    module_path: str = ""

    @classmethod
    def parse(cls, text: str) -> TokenUri:
        """Read `pkcs11:token=...;serial=...`; InputError for anything that is not the address of a token."""
        scheme, colon, rest = text.partition(":")
        if not colon or scheme.lower() != "pkcs11":
            raise InputError("a token address begins with pkcs11:", hint="for example pkcs11:token=factory;serial=0a1b")
        path, _, query = rest.partition("?")
        values = _attributes(path, ";")
        fields = {_FIELDS[name]: value for name, value in values.items() if name in _FIELDS}
        for name in values.keys() - _FIELDS.keys():
            raise InputError(f"a token address cannot hold {name}", hint="name the token by its token label and serial")
        for name, value in _attributes(query, "&").items():
            if name != "module-path":
                raise InputError(
                    f"a token address cannot hold {name}", hint="the PIN's source is a setting of its own: token.pin"
                )
            fields["module_path"] = value
        uri = cls(**fields)
        if not (uri.token or uri.serial):
            raise InputError("a token address needs a token label or serial", hint="pkcs11:token=LABEL;serial=SERIAL")
        return uri

    def matches(self, token: TokenUri) -> bool:
        """Tell whether every field named here is the token's."""
        return all(
            not wanted or wanted == found
            for wanted, found in (
                (self.token, token.token),
                (self.serial, token.serial),
                (self.manufacturer, token.manufacturer),
                (self.model, token.model),
            )
        )

    def __str__(self) -> str:
        parts = [
            f"{attribute}={quote(getattr(self, field), safe=_SAFE)}"
            for attribute, field in _FIELDS.items()
            if getattr(self, field)
        ]
        query = f"?module-path={quote(self.module_path, safe=_SAFE + '/')}" if self.module_path else ""
        return "pkcs11:" + ";".join(parts) + query


def _attributes(text: str, separator: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError("a part of the token address has no value", hint="its parts read name=value")
        if name in found:
            raise InputError(f"the token address names {name} twice", hint="a PKCS#11 URI names each attribute once")
        try:
            found[name] = unquote_to_bytes(value).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{name} of the token address is not UTF-8", hint="percent-encode its octets") from error
    return found


class Pin:
    """A PIN on its way to the token; it shows itself to nobody."""

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes) -> None:
        if not 0 < len(octets) <= PIN_MAX_OCTETS:
            raise LoginError(f"a PIN has 1 to {PIN_MAX_OCTETS} octets", hint="check what the PIN source delivers")
        self._octets = octets

    def reveal(self) -> bytes:
        """Hand out the octets; only C_Login, C_InitToken and C_InitPIN have a use for them."""
        return self._octets

    def __repr__(self) -> str:
        return "Pin(hidden)"

    def __reduce__(self) -> str:
        raise TypeError("a PIN does not leave the process")


def read_pin(source: str, home: Path) -> Pin:
    """Read a PIN from `env:NAME`, `file:PATH`, `fd:N`, `credential:NAME`, `command:LINE` or `prompt:`.

    A relative PATH counts from `home`. One line end after the PIN is dropped. Raises LoginError, which names the source
    and never what was read.
    """
    kind, colon, rest = source.partition(":")
    reader = _READERS.get(kind)
    if not colon or reader is None:
        raise LoginError("the PIN source is of no known kind", hint="env: file: fd: credential: command: prompt:")
    octets = reader(rest, home)
    return Pin(octets.removesuffix(b"\n").removesuffix(b"\r"))


def pin_state(source: str, home: Path) -> str:
    """Name a PIN source, and the state of a file it names, so that a changed file is another source; no PIN is read.

    What has no state that can be asked for is named alone: reading it tells what is wrong with it.
    """
    kind, _, rest = source.partition(":")
    try:
        if kind == "file":
            status = (home / rest).lstat()
        elif kind == "fd" and rest.isdecimal():
            status = os.fstat(int(rest))
        else:
            return source
    except OSError:
        return source
    if not stat.S_ISREG(status.st_mode):
        return source
    return f"{source} {status.st_ino} {status.st_size} {status.st_mtime_ns}"


def pin_descriptors(*sources: str) -> tuple[int, ...]:
    """Return the file descriptors that a process must inherit to read these sources itself."""
    return tuple(int(source[3:]) for source in sources if source.startswith("fd:") and source[3:].isdecimal())


def pin_path(source: str, home: Path) -> Path | None:
    """Return the file of a `file:` source, None for any other."""
    return home / source.removeprefix("file:") if source.startswith("file:") else None


def _from_environment(name: str, _home: Path) -> bytes:
    value = os.environb.get(name.encode())
    if value is None:
        raise LoginError(f"the environment has no {name} to read the PIN from", hint=f"set {name}")
    return value


def _from_file(name: str, home: Path) -> bytes:
    path = home / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise LoginError(f"cannot open the PIN file {path}: {error.strerror}", hint="check token.pin") from error
    try:
        _check_pin_file(path, os.fstat(descriptor))
        return os.read(descriptor, PIN_MAX_OCTETS + 3)
    finally:
        os.close(descriptor)


def _check_pin_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise LoginError(f"the PIN file {path} is not a regular file", hint="use fd: or command: for a pipe")
    if stat.S_IMODE(status.st_mode) & ~0o600:
        raise LoginError(f"others may read the PIN file {path}", hint=f"chmod 600 {path}")
    if status.st_uid != os.geteuid():
        raise LoginError(f"the PIN file {path} belongs to another user", hint=f"chown {os.geteuid()} {path}")


def _from_descriptor(number: str, _home: Path) -> bytes:
    """Read a file from its beginning, so that each worker of a process finds the PIN; a pipe can be read once."""
    if not number.isdecimal():
        raise LoginError("fd: needs the number of an open file", hint="for example fd:3 with 3<pin-file")
    octets = b""
    descriptor = int(number)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.pread(descriptor, PIN_MAX_OCTETS + 3, 0)
        while len(octets) <= PIN_MAX_OCTETS and (more := os.read(descriptor, PIN_MAX_OCTETS + 3)):
            octets += more
    except OSError as error:
        raise LoginError(f"cannot read the PIN from file descriptor {number}: {error.strerror}") from error
    return octets


def _from_credential(name: str, _home: Path) -> bytes:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise LoginError("systemd passed no credentials", hint=f"add LoadCredential={name}: to the unit")
    if not name or "/" in name or name.startswith("."):
        raise LoginError("a credential is a bare name", hint="for example credential:token-pin")
    try:
        with (Path(folder) / name).open("rb") as file:
            return file.read(PIN_MAX_OCTETS + 3)
    except OSError as error:
        raise LoginError(f"cannot read the credential {name}: {error.strerror}", hint="see LoadCredential=") from error


def _from_command(line: str, home: Path) -> bytes:
    try:
        words = shlex.split(line)
        if not words:
            raise LoginError("command: needs a command line", hint="for example command:pass show hsmkm/pin")
        done = subprocess.run(  # noqa: S603 - the operator names the command, and no shell reads it
            words, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=COMMAND_SECONDS, check=False
        )
    except (OSError, ValueError) as error:
        raise LoginError("the PIN command cannot be run", hint="check token.pin") from error
    except subprocess.TimeoutExpired:
        raise LoginError(f"the PIN command took over {COMMAND_SECONDS} s", hint="run it by hand") from None
    if done.returncode:
        raise LoginError(f"the PIN command ended with {done.returncode}", hint="run it by hand")
    return done.stdout


def _from_prompt(_rest: str, _home: Path) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would go on, and show the PIN
            return getpass.getpass("token PIN: ").encode()
    except (EOFError, OSError, getpass.GetPassWarning) as error:
        raise LoginError("no terminal to ask for the PIN", hint="use file:, credential: or command:") from error


_READERS: Mapping[str, Callable[[str, Path], bytes]] = {
    "env": _from_environment,
    "file": _from_file,
    "fd": _from_descriptor,
    "credential": _from_credential,
    "command": _from_command,
    "prompt": _from_prompt,
}
