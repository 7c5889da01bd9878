"""Makes the homes of the demo's parties, with tokens, certificates and registrations, in the folder that is named.

README.md shows the same by hand, command by command. Here it is done in one process, which takes seconds: most of what
a command takes is the start of its two processes. Each party is opened by itself, one after the other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from hsmkm.cli.frame import default_actor, explain
from hsmkm.errors import HsmkmError
from hsmkm.steps import certify, model
from hsmkm.steps.issue import issue
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.register_party import PartyPlan, register_party
from hsmkm.steps.setup import make_token, set_in_file, write_home

MODELS = {0: "virtual", 1: "virtual-1", 2: "virtual-2"}
"""The virtual meter of each suite: a model has one set of initial keys."""

FLAG = "MMM"
HOST = "127.0.0.1"
CRL_DAYS = 7
TITLES = {
    "authority": "4155540000000001",
    "factory": "4641430000000002",
    "line": "4C494E0000000003",
    "utility": "5554490000000004",
    "concentrator": "434F4E0000000005",
}


def opened(folder: Path, party: str) -> AbstractContextManager[Party]:
    """Log in to a party's token and open its store."""
    return open_party(folder / party, default_actor())


def make_parties(folder: Path, profile: str, suites: Sequence[int]) -> None:
    """Make every home and token, of this profile; FOLDER/initial-SUITE.keys are imported at the factory and removed."""
    for party, title in TITLES.items():
        flags = (FLAG,) if party == "factory" else ()
        make_token(write_home(folder / party, party, party, title, flags, profile), default_actor())
    make_authorities(folder)
    for party in list(TITLES)[1:]:
        certified(folder, party)
    register(folder, "factory", "line", "utility")
    register(folder, "utility", "factory")
    register(folder, "concentrator", "utility")
    settings = folder / "concentrator" / "hsmkm.toml"
    for key, value in (("aim", "utility"), ("kind", "client"), ("listen", f"{HOST}:0")):
        set_in_file(settings, "concentrator", key, value)
    set_in_file(folder / "utility" / "hsmkm.toml", "service", "listen", f"{HOST}:0")
    with opened(folder, "factory") as factory:
        for suite in suites:
            keys = folder / f"initial-{suite}.keys"
            model.import_keys(factory, MODELS[suite], suite, keys)
            keys.unlink()


def make_authorities(folder: Path) -> None:
    """Make the root, the issuing authorities, and what they publish; P-384 certifies keys on both curves."""
    with opened(folder, "authority") as authority:
        certify.create_root(authority, "Demo Root", "P-384")
        certify.create_issuing(authority, "issuing", "Demo Issuing", "P-384")
        certify.create_issuing(authority, "package-issuing", "Demo Package Issuing", "P-384")
        certify.publish(authority, folder / "pki", CRL_DAYS)


def certified(folder: Path, name: str) -> None:
    """Bring a party's requests to the authority, and its certificates back."""
    requests, certificates = folder / "requests" / name, folder / "certificates" / name
    with opened(folder, name) as party:
        certify.request(party, (HOST,), requests)
    with opened(folder, "authority") as authority:
        issue(authority, requests, certificates)
    with opened(folder, name) as party:
        certify.place_anchor(party, folder / "pki" / "root.pem")
        certify.update_trust(party, folder / "pki")
        certify.install(party, certificates)


def register(folder: Path, at: str, *names: str) -> None:
    """Register parties at another."""
    with opened(folder, at) as party:
        for name in names:
            flags = (FLAG,) if name == "factory" else ()
            register_party(party, PartyPlan(name, name, flags, "", "", folder / "certificates" / name))


def main() -> int:
    """Make the parties in the folder, with the kind of token and for the suites that the arguments name."""
    try:
        make_parties(Path(sys.argv[1]), sys.argv[2], [int(suite) for suite in sys.argv[3:]])
    except HsmkmError as error:
        explain(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
