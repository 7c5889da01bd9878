"""pkilint, the linter of RFC 5280 that is not ours: run as a program where it is installed, never imported.

Its programs are looked for beside Python first, so that an environment's own is taken, and then on the PATH.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import HsmkmError

SECONDS = 60
"""How long one run may take: a linter that is given a hostile certificate must not hold anybody up."""

_ERRORS = ("FATAL", "ERROR")


@dataclass(frozen=True, slots=True)
class LintFinding:
    """What a linter says of a certificate or list; `is_error` where it breaks a rule."""

    severity: str
    text: str

    @property
    def is_error(self) -> bool:
        """Whether a rule is broken: a warning or notice breaks none."""
        return self.severity in _ERRORS


def program(name: str) -> str | None:
    """Find one of pkilint's programs; None where it is not installed."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def is_installed() -> bool:
    """Whether pkilint is there for certificates and lists."""
    return all(program(name) for name in ("lint_pkix_cert", "lint_crl"))


def findings(subject: x509.Certificate | x509.CertificateRevocationList) -> list[LintFinding]:
    """Let pkilint judge a certificate or list: findings from NOTICE up.

    Raises HsmkmError where it is not installed or comes to no result.
    """
    if isinstance(subject, x509.Certificate):
        return _run("lint_pkix_cert", [], subject.public_bytes(Encoding.DER))
    return _run("lint_crl", ["--type", "CRL", "--profile", "PKIX"], subject.public_bytes(Encoding.DER))


def _run(name: str, options: list[str], der: bytes) -> list[LintFinding]:
    found = program(name)
    if found is None:
        raise HsmkmError("pkilint is not installed", hint="pip install pkilint")
    command = [found, "lint", *options, "--severity", "NOTICE", "--format", "JSON", "--document-format", "DER", "-"]
    try:
        done = subprocess.run(command, input=der, capture_output=True, timeout=SECONDS, check=False)  # noqa: S603 - pkilint's program, with fixed arguments
        return list(_findings(json.loads(done.stdout)))
    except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        raise HsmkmError(f"{name} came to no result", hint=f"run it yourself: {name} lint FILE") from error


def _findings(said: Any) -> Iterator[LintFinding]:  # noqa: ANN401 - JSON of another program; KeyError and TypeError tell
    for result in said["results"]:
        for one in result["finding_descriptions"]:
            text = f"{one['code']} at {result['node_path']}"
            yield LintFinding(str(one["severity"]), f"{text}: {one['message']}" if one["message"] else text)
