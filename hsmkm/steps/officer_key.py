"""What an officer does alone: has a key certified, reads a request, and signs it with that key.

The key is the officer's own, in a file that only the officer reads (encrypted, as a rule) or in a token of the
officer's own home; a party's keys approve nothing. `openssl cms -sign -cades` signs a request as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError, LoginError, RefusedError
from hsmkm.packages.approval import ApprovalRequest, open_approval, parse_request
from hsmkm.packages.container import sign_content
from hsmkm.pki.certificates import public_key, read_certificates
from hsmkm.pki.requests import build_request
from hsmkm.steps.approve import PROFILE, read_signed
from hsmkm.steps.party import Party, utc_now
from hsmkm.token.signer import TokenSigner
from hsmkm.token.uri import read_pin

LABEL = PROFILE
MAX_KEY = 64 * 1024


def request_certificate(party: Party, name: str, out: Path) -> Path:
    """Make the officer's key in the token where there is none, and write a request for its certificate."""
    if not party.vault.has_ec_key(LABEL):
        party.vault.create_ec_key(LABEL, "P-256")
    made = build_request(TokenSigner(party.vault, LABEL), PROFILE, name)
    with party.store.begin("officer-request", name, {}):
        replace_file(out, made.public_bytes(Encoding.PEM))
    return out


def read_request(path: Path) -> ApprovalRequest:
    """Read a request, signed or not; InputError or IntegrityError where it is neither."""
    data = read_signed(path)
    return open_approval(data)[0] if data[:1] == b"\x30" else parse_request(data)


def sign_with_token(party: Party, request: Path, certificate: Path, out: Path) -> None:
    """Sign a request with the officer's key in the token of this home."""
    _sign(request, read_certificates(certificate), TokenSigner(party.vault, LABEL), out)
    with party.store.begin("approval-sign", request.name, {}):
        pass


def sign_with_file(request: Path, certificate: Path, out: Path, key: Path, passphrase: str) -> None:
    """Sign a request with a key in a PEM file; `passphrase` names where its passphrase is, if it is encrypted."""
    _sign(request, read_certificates(certificate), _load(key, passphrase), out)


def _sign(request: Path, certificates: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey, out: Path) -> None:
    leaf, *chain = certificates
    if public_key(leaf) != key.public_key():
        raise RefusedError("the certificate is not that of the key", hint="give the officer's own certificate and key")
    data = read_signed(request)
    parse_request(data)
    needed = [one for one in chain if one.subject != one.issuer]
    replace_file(out, sign_content(data, key, leaf, needed, utc_now()))


def _load(path: Path, passphrase: str) -> ec.EllipticCurvePrivateKey:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY)
    except OSError as error:
        raise InputError(f"cannot read the key {path}: {error.strerror}", hint="give a key in PEM") from error
    secret = read_pin(passphrase, Path()).reveal() if b"ENCRYPTED" in data else None
    try:
        key = load_pem_private_key(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if secret is not None:
            raise LoginError(f"the key {path} does not open with its passphrase", hint="see --passphrase") from error
        raise InputError(f"{path} is not a private key in PEM", hint="give the officer's key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"the key {path} is not on an elliptic curve", hint="officers sign on P-256 or P-384")
    return key
