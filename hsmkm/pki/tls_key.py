"""The private keys of TLS certificates: the one kind of private key that lies in a file and not in the token.

Python's ssl cannot use a key in a token. The file has mode 0600, the certificate lives 90 days, and `token doctor`
declares the exposure.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from hsmkm.durable_file import create_secret_file
from hsmkm.errors import InputError, PolicyError

_OWNER_ONLY = 0o600
_MAX_FILE = 16 << 10


def create_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key in a new file of mode 0600, whole or not there; raise RefusedError where the file exists."""
    key = ec.generate_private_key(ec.SECP256R1())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_secret_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def load_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a TLS key; raise PolicyError where others can read the file, InputError where it holds no such key."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise InputError(f"the TLS key {path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & ~_OWNER_ONLY:
            raise PolicyError(f"the TLS key {path} has mode {mode:04o}", hint=f"chmod 600 {path}")
        data = file.read(_MAX_FILE)
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} holds no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path} holds no elliptic-curve key")
    return key
