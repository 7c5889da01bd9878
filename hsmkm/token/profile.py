"""What a kind of token can and how it is asked, read from `tokens/NAME.toml`."""

from __future__ import annotations

import importlib.resources
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsmkm.errors import InputError, TokenUnreachableError
from hsmkm.token import ckr

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MAKE_IT = "make the token first: hsmkm token init"
_RUNGS: Mapping[str, frozenset[str]] = {
    "kdf_x963": frozenset({"native", "digest-key"}),
    "kdf_sp800": frozenset({"native", "concatenate", "digest-key"}),
    "gcm": frozenset({"native"}),
    "gak_read": frozenset({"readable"}),
    "import": frozenset({"create-object"}),
    "mac": frozenset({"hmac-sha256"}),
    "digest_md5": frozenset({"digest-key", "digest-readable"}),
    "digest_sha": frozenset({"digest-key", "digest-readable"}),
}


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """The numbers this token gives the mechanisms that are used."""

    aes_key_gen: int
    aes_key_wrap: int
    aes_key_wrap_pad: int
    aes_gcm: int
    generic_secret_key_gen: int
    sha256_hmac: int
    md5: int
    sha1: int
    sha256: int
    sha384: int
    ec_key_pair_gen: int
    ecdsa: int
    ecdh1_derive: int
    concatenate_base_and_data: int
    concatenate_data_and_base: int
    sha256_key_derivation: int
    sha384_key_derivation: int


@dataclass(frozen=True, slots=True)
class Kdfs:
    """The numbers this token gives the key derivation functions of C_DeriveKey with ECDH."""

    sha256_x963: int
    sha384_x963: int
    sha256_sp800: int
    sha384_sp800: int


@dataclass(frozen=True, slots=True)
class Guards:
    """What the token itself refuses, found by misusing it."""

    unwrap_template: bool
    modifiable: bool
    uncopyable: bool
    unextractable: bool
    unwrapped_unmodifiable: bool


@dataclass(frozen=True, slots=True)
class Altered:
    """The return values that blame the input, for unwrapping and for decryption."""

    unwrap: frozenset[int]
    decrypt: frozenset[int]


@dataclass(frozen=True, slots=True)
class Initialisation:
    """How the module is initialised, and how a new token gets its PIN.

    `directory` holds the tokens, as seen from the home folder. `parameters` is the string that C_Initialize takes
    beside its flags, with the places {directory} and {label}; empty where it takes none. `init_token` tells that
    C_InitToken makes a token; otherwise there is one without PINs, whose officer sets the user's. `database` names
    the file that a token has there, where the module would make an empty one in its place; empty where it would not.
    """

    directory: str
    database: str
    parameters: str
    init_token: bool

    def check(self, home: Path) -> None:
        """Raise TokenUnreachableError if the database of a token that exists is missing."""
        path = home.resolve() / self.directory / self.database
        if self.database and not path.is_file():
            raise TokenUnreachableError(f"there is no database {path}", hint=_MAKE_IT)

    def argument(self, home: Path, label: str) -> bytes:
        """Fill in the parameters; each place stands between apostrophes, and a backslash quotes.

        Raises TokenUnreachableError if the folder of the tokens is missing.
        """
        directory = home.resolve() / self.directory
        if not directory.is_dir():
            raise TokenUnreachableError(f"there is no folder {directory}", hint=_MAKE_IT)
        places = {"directory": str(directory), "label": label}
        quoted = {name: re.sub(r"(['\\\\])", r"\\\1", text) for name, text in places.items()}
        return self.parameters.format(**quoted).encode()


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of token. `ladders` holds, for each task, the ways this token has for it, best first.

    `unstored` names attributes of the standard that the token cannot store, and refuses in a template.
    `session_copies` tells that a token object is slow to use, so that a session copy of it does the work.
    `data_objects` tells that it keeps private data objects, in one of which the store's anchor lies.
    `threads` is how many sessions of one process are worth their while; 1 where the token serialises them.
    `recycle_after`: session keys after which the module is initialised anew, because it leaks; 0 where it does not.
    """

    name: str
    verified: bool
    source: str
    modules: tuple[str, ...]
    roles: frozenset[str]
    max_session_objects: int
    environment: Mapping[str, str]
    initialisation: Initialisation
    unstored: frozenset[str]
    session_copies: bool
    data_objects: bool
    threads: int
    recycle_after: int
    mechanisms: Mechanisms
    kdfs: Kdfs
    ladders: Mapping[str, tuple[str, ...]]
    guards: Guards
    altered: Altered

    def module(self, configured: str) -> str:
        """Return the path of the module to load; TokenUnreachableError if there is none."""
        candidates = (configured,) if configured else self.modules
        for path in candidates:
            if Path(path).is_file():
                return path
        raise TokenUnreachableError(
            f"no PKCS#11 module at {', '.join(candidates)}", hint="install the token's software, or set token.module"
        )


def load_profile(name: str) -> Profile:
    """Read a profile from the installed package, or else from the source tree; InputError names a fault."""
    if not _NAME.fullmatch(name):
        raise InputError("a token profile's name has small letters, digits and hyphens", hint="for example softhsm2")
    for folder in _folders():
        file = folder / f"{name}.toml"
        if file.is_file():
            return parse_profile(file.read_text(encoding="utf-8"))
    raise InputError(f"there is no token profile {name}", hint="the profiles are the files of tokens/")


def derives_on_host(profile: Profile) -> bool:
    """Tell whether such a token's best way to some agreed key leads through host memory."""
    return any(profile.ladders[task][:1] == ("digest-key",) for task in ("kdf_x963", "kdf_sp800"))


def _folders() -> tuple[Traversable, ...]:
    package = importlib.resources.files("hsmkm")
    return (package / "tokens", Path(__file__).parents[2] / "tokens")


def parse_profile(text: str) -> Profile:
    """Read a profile's TOML; InputError names what is missing, unknown or of the wrong type."""
    try:
        values = tomllib.loads(text)
        return _profile(values)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"the token profile is not TOML: {error}") from error
    except KeyError as error:
        raise InputError(f"the token profile lacks {error.args[0]}") from error
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError("the token profile holds a value of the wrong type, or a name that is not known") from error


def _profile(values: Mapping[str, Any]) -> Profile:
    altered = values["altered"]
    return Profile(
        name=str(values["name"]),
        verified=values["verified"] is True,
        source=str(values["source"]),
        modules=tuple(str(path) for path in values["modules"]),
        roles=frozenset(values["roles"]),
        max_session_objects=int(values["max_session_objects"]),
        environment={str(name): str(path) for name, path in values["environment"].items()},
        initialisation=Initialisation(**values["initialisation"]),
        unstored=frozenset(values["unstored"]),
        session_copies=values["session_copies"] is True,
        data_objects=values["data_objects"] is True,
        threads=int(values["threads"]),
        recycle_after=int(values["recycle_after"]),
        mechanisms=Mechanisms(**values["mechanisms"]),
        kdfs=Kdfs(**values["kdfs"]),
        ladders=_ladders(values["ladders"]),
        guards=Guards(**values["guards"]),
        altered=Altered(unwrap=_codes(altered["unwrap"]), decrypt=_codes(altered["decrypt"])),
    )


def _ladders(values: Mapping[str, list[str]]) -> Mapping[str, tuple[str, ...]]:
    for task in values.keys() ^ _RUNGS.keys():
        raise InputError(f"the token profile's ladder {task} is missing or not known")
    for task, rungs in values.items():
        for rung in set(rungs) - _RUNGS[task]:
            raise InputError(f"the token profile's ladder {task} has a rung {rung} that is not known")
    return {task: tuple(rungs) for task, rungs in values.items()}


def _codes(names: list[str]) -> frozenset[int]:
    return frozenset(ckr.CODES[name] for name in names)
