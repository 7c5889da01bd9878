"""The places for a party's own keys and certificates: a profile on a curve, called by one name everywhere.

That name is the key's label in the token, the file of its certificate, and what a pinned certificate is kept under. On
P-256 it is the profile's own name, on P-384 it ends in `-p384`. Suites 0 and 1 are dealt with on P-256; what speaks of
one meter of suite 2 is signed and agreed on P-384, which protects as much as that meter's keys do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.errors import InputError

P256, P384 = "P-256", "P-384"
SUITE_2 = 2
_SUFFIX = "-p384"
_CURVES = {"secp256r1": P256, "secp384r1": P384}
_ON_BOTH = ("digital-signature", "package-signing", "key-agreement")


@dataclass(frozen=True, slots=True)
class Slot:
    """One place: a certificate profile, and P-256 or P-384."""

    profile: str
    curve: str = P256

    @property
    def name(self) -> str:
        """How the key, its certificate file and its pinned certificate are called."""
        return self.profile + (_SUFFIX if self.curve == P384 else "")


SLOTS = (*(Slot(profile) for profile in (*_ON_BOTH, "tls")), *(Slot(profile, P384) for profile in _ON_BOTH))


def slot(name: str) -> Slot:
    """Find the slot of a name; InputError where there is none."""
    for one in SLOTS:
        if one.name == name:
            return one
    raise InputError(f"no certificate is called {name!r}", hint=f"one of {', '.join(one.name for one in SLOTS)}")


def slots_for(suites: Collection[int]) -> tuple[Slot, ...]:
    """List the slots of a party that deals with meters of these suites; those on P-256 are always there."""
    return tuple(one for one in SLOTS if one.curve == P256 or SUITE_2 in suites)


def curve_for(suites: Iterable[int]) -> str:
    """Name the curve on which something that speaks of meters of these suites is signed and agreed."""
    return P384 if SUITE_2 in suites else P256


def curve_of(key: ec.EllipticCurvePublicKey) -> str:
    """Name the curve of a key; InputError for one outside suites 1 and 2."""
    try:
        return _CURVES[key.curve.name]
    except KeyError:
        raise InputError(f"the curve {key.curve.name} is not allowed", hint="use P-256 or P-384") from None
