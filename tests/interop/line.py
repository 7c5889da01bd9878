"""The options with which an independent meter is what a factory's line made."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509 import load_pem_x509_certificates

from tests.mechanisms import SIGNATURE, TITLE, Line


def options(line: Line, word: str = "unused") -> tuple[str, ...]:
    """Name the model's initial keys and secret."""
    names = {"guek": "--guek", "gbek": "--gbek", "gak": "--gak", "master": "--kek"}
    keys = [text for role, name in names.items() for text in (name, line.keys[role].hex())]
    return ("--system-title", TITLE, "--suite", str(line.suite), "--password", word, *keys)


def signing(line: Line, folder: Path) -> tuple[str, ...]:
    """Write the meter's own key for digital signatures and our certified one, on P-256, and name the files."""
    own, theirs = folder / "server.pem", folder / "client.pem"
    own.write_bytes(line.state.key_pairs[SIGNATURE].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    ours = (line.realm.home("factory") / "certificates" / "digital-signature.pem").read_bytes()
    public = load_pem_x509_certificates(ours)[0].public_key()
    theirs.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return ("--server-sign-key", str(own), "--client-sign-pub", str(theirs))
