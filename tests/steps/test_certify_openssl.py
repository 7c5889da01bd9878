"""OpenSSL accepts every request that a party's token signed, and every chain that an authority's token issued."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

if TYPE_CHECKING:
    from tests.realm import Realm


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_openssl_accepts_every_request_and_chain_of_a_realm(realm: Realm) -> None:
    pki, lists = realm.folder / "pki", realm.folder / "lists.pem"
    crls = [x509.load_der_x509_crl(path.read_bytes()) for path in sorted(pki.glob("*.crl"))]
    lists.write_bytes(b"".join(crl.public_bytes(Encoding.PEM) for crl in crls))
    requests = sorted((realm.folder / "requests").glob("*/*.csr"))
    chains = sorted((realm.folder / "certificates").glob("*/*.pem"))
    assert [path.stem for path in requests] == [path.stem for path in chains]
    assert len(chains) == 5 * 7
    for path in requests:
        done = openssl("req", "-verify", "-noout", "-in", path)
        assert (done.returncode, "verify OK" in done.stdout + done.stderr) == (0, True), path
    strict = ("verify", "-x509_strict", "-crl_check_all", "-CAfile", pki / "root.pem", "-CRLfile", lists)
    for path in chains:
        done = openssl(*strict, "-untrusted", path, path)
        assert done.returncode == 0, done.stdout + done.stderr
    without = openssl("verify", "-x509_strict", "-crl_check_all", "-CAfile", pki / "root.pem", "-untrusted", path, path)
    assert without.returncode != 0, "a list is asked for"
