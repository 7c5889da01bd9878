"""Certificates from checked requests, recorded, stored and written, beside the signatures of the token alone."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench_lab import PROFILE, Lab, Loop
from bench_line import Line
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from parties import TITLES

from hsmkm.pki.requests import build_request
from hsmkm.steps import certify
from hsmkm.steps.asked import asked_in
from hsmkm.steps.issue import issue_checked
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.setup import make_token, write_home
from hsmkm.token.workers import Worker

ACTOR = "bench"
FEW = 520
"""More than a batch of workers, so that they start."""

FLOOR = "a C loop that signs with the authority's key"
CURVES = {"P-256": (ec.SECP256R1(), 0.25), "P-384": (ec.SECP384R1(), 0.7)}


class Issuing:
    """An authority on a curve, whose home and worker are made at the first measurement, and new requests each time."""

    def __init__(self, lab: Lab, curve: str) -> None:
        self.lab = lab
        self.curve = curve
        self.name = f"authority-{curve}"
        self._worker: Worker[Party] | None = None
        self._serials = itertools.count(1)
        self._rates: list[float] = []

    def issue(self, count: int) -> float:
        """Issue so many certificates; the seconds from the checked requests to the files."""
        folder = self._requests(count)
        whole, seconds = self._opened().call(issued, folder, folder / "issued")
        self._rates.append(count / whole)
        return seconds

    def loop(self, count: int) -> float:
        """Let the C loop sign with the authority's key."""
        self._opened()
        return self.lab.loop(Loop(self.name, "sign", key="ca:issuing"), count)

    def extra(self) -> dict[str, float]:
        """Tell the best rate from a folder of requests, which are read and checked first."""
        return {"a second with reading and checking": round(max(self._rates))}

    def _opened(self) -> Worker[Party]:
        if self._worker is None:
            home = self.lab.folder / self.name
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
                other.submit(make_authority, home, self.curve).result()
            self._worker = self.lab.stack.enter_context(Worker(open_party, home, ACTOR))
        return self._worker

    def _requests(self, count: int) -> Path:
        """Write requests of new meters, each for a key of its own on the authority's curve."""
        titles = [f"4D4D4D{serial:010X}" for serial in itertools.islice(self._serials, count)]
        folder = self.lab.folder / f"requests-{self.curve}-{titles[0]}"
        folder.mkdir()
        for title in titles:
            made = build_request(ec.generate_private_key(CURVES[self.curve][0]), "digital-signature", title)
            (folder / f"{title}.digital-signature.csr").write_bytes(made.public_bytes(Encoding.DER))
        return folder


def make_authority(home: Path, curve: str) -> None:
    """Make the home of an authority with a root and an issuing authority on one curve; in a process of its own."""
    make_token(write_home(home, home.name, "authority", TITLES["authority"], (), PROFILE), ACTOR)
    with open_party(home, ACTOR) as party:
        certify.create_root(party, "Bench Root", curve)
        certify.create_issuing(party, "issuing", "Bench Issuing", curve)


def issued(party: Party, folder: Path, out: Path) -> tuple[float, float]:
    """Issue for a folder: the seconds of all, and those after the requests were checked."""
    began = time.monotonic()
    wanted, faults = asked_in(party.hands, folder)
    checked = time.monotonic()
    issue_checked(party, folder, wanted, faults, out)
    done = time.monotonic()
    return done - began, done - checked


def lines(lab: Lab) -> Iterator[Line]:
    """Give a line for each curve."""
    for curve, (_, reach) in CURVES.items():
        issuing = Issuing(lab, curve)
        yield Line(
            name=f"issue-{curve.lower().replace('-', '')}",
            unit="certificates",
            floor=FLOOR,
            ours=issuing.issue,
            base=issuing.loop,
            count=4_000 if curve == "P-256" else 2_000,
            few=FEW,
            reach=reach,
            extra=issuing.extra,
        )
