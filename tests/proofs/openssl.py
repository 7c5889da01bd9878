"""Opens key packages with the openssl command line alone: nothing of hsmkm, and no cryptography in Python.

Python cuts octets at the places that `openssl asn1parse` tells, reads the JSON, and carries values from one command to
the next.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CURVES = {65: ("prime256v1", "sha256"), 97: ("secp384r1", "sha384")}
"""Curve and hash by the length of a point in octets (RFC 5753 section 7.1.4)."""

_WRAP_IV = "a6a6a6a6a6a6a6a6"  # RFC 3394 section 2.2.3.1
_LINE = re.compile(r"\s*(\d+):d=\d+\s+hl=(\d+)\s+l=\s*(\d+)\s+\w+:\s+(.+?)\s*(?:\[HEX DUMP\])?(?::(.*))?$")


class OpensslError(Exception):
    """openssl refused; the message begins with its command."""


@dataclass(frozen=True)
class Element:
    """One line of `openssl asn1parse`."""

    kind: str
    text: str
    value: bytes


def openssl(*arguments: str | Path, given: bytes = b"") -> bytes:
    """Run openssl and give its standard output; OpensslError where it fails."""
    done = subprocess.run(["openssl", *map(str, arguments)], input=given, capture_output=True, check=False)
    if done.returncode:
        raise OpensslError(f"openssl {arguments[0]}: {done.stderr.decode()}")
    return done.stdout


def accepts(package: Path, root: Path, content: Path | None = None) -> bool:
    """Whether `openssl cms -verify` accepts a signed file under this root, and knows no other trust."""
    out = ["-out", str(content or "/dev/null")]
    options = ["-verify", "-inform", "DER", "-binary", "-purpose", "any", "-no-CApath", "-no-CAstore"]
    command = ["openssl", "cms", *options, "-CAfile", str(root), "-in", str(package), *out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and "successful" in done.stderr


def content_of(package: Path, root: Path) -> bytes:
    """The content of a signed file, verified."""
    out = package.with_suffix(".content")
    assert accepts(package, root, out), package
    content = out.read_bytes()
    out.unlink()
    return content


def elements(der: bytes) -> list[Element]:
    """The elements of a DER structure as `openssl asn1parse` sees them."""
    found = []
    for line in openssl("asn1parse", "-inform", "DER", given=der).decode().splitlines():
        match = _LINE.match(line)
        assert match, line
        start, header, length = int(match[1]), int(match[2]), int(match[3])
        found.append(Element(match[4], match[5] or "", der[start + header : start + header + length]))
    return found


def generated(folder: Path, *lines: str) -> bytes:
    """The DER structure that `openssl asn1parse -genconf` makes of a description."""
    (folder / "asn1.cnf").write_text("\n".join(lines))
    openssl("asn1parse", "-genconf", folder / "asn1.cnf", "-noout", "-out", folder / "asn1.der")
    return (folder / "asn1.der").read_bytes()


def unwrap(key: bytes, wrapped: bytes) -> bytes:
    """AES key unwrap (RFC 3394) under a key of 16 or 32 octets; openssl fails where its check does."""
    cipher = f"-id-aes{8 * len(key)}-wrap"
    return openssl("enc", "-d", cipher, "-K", key.hex(), "-iv", _WRAP_IV, "-nopad", given=wrapped)


def agreed_key(folder: Path, recipient_info: bytes, private_key: Path) -> tuple[bytes, bytes, bytes]:
    """The key-encryption key of a KeyAgreeRecipientInfo (RFC 5753), its ukm, and what it wraps."""
    parts = elements(recipient_info)
    names = [part.text for part in parts if part.kind == "OBJECT"]
    assert names[0] == "id-ecPublicKey"
    (point,) = [part.value for part in parts if part.kind == "BIT STRING"]
    curve, digest = _CURVES[len(point) - 1]
    assert names[1:3] == [f"dhSinglePass-stdDH-{digest}kdf-scheme", "id-aes256-wrap"]
    ukm, wrapped = [part.value for part in parts if part.kind == "OCTET STRING"]
    spki = generated(
        folder,
        "asn1=SEQUENCE:spki",
        "[spki]",
        "algorithm=SEQUENCE:algorithm",
        f"key=FORMAT:HEX,BITSTRING:{point[1:].hex()}",
        "[algorithm]",
        "type=OID:id-ecPublicKey",
        f"curve=OID:{curve}",
    )
    openssl("pkey", "-pubin", "-inform", "DER", "-out", folder / "ephemeral.pem", given=spki)
    secret = openssl("pkeyutl", "-derive", "-inkey", private_key, "-peerkey", folder / "ephemeral.pem")
    info = generated(
        folder,
        "asn1=SEQUENCE:info",
        "[info]",
        "keyInfo=SEQUENCE:wrap",
        f"entityUInfo=EXPLICIT:0,FORMAT:HEX,OCTETSTRING:{ukm.hex()}",
        "suppPubInfo=EXPLICIT:2,FORMAT:HEX,OCTETSTRING:00000100",
        "[wrap]",
        "algorithm=OID:id-aes256-wrap",
    )
    options = [f"digest:{digest}", f"hexsecret:{secret.hex()}", f"hexinfo:{info.hex()}"]
    asked = [word for option in options for word in ("-kdfopt", option)]
    return openssl("kdf", "-keylen", "32", "-binary", *asked, "X963KDF"), ukm, wrapped


def open_package(package: Path, root: Path, private_key: Path, folder: Path) -> dict[str, dict[str, bytes]]:
    """The keys of a package by system title and role, for the holder of this private key."""
    document: dict[str, Any] = json.loads(content_of(package, root))
    info = base64.b64decode(document["transport"]["recipient_info"])
    agreed, ukm, wrapped = agreed_key(folder, info, private_key)
    header = {name: value for name, value in document.items() if name not in ("transport", "meters")}
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert openssl("dgst", "-sha256", "-binary", given=canonical) == ukm
    package_key = unwrap(agreed, wrapped)
    assert len(package_key) == 32
    return {meter["system_title"]: _meter_keys(meter["keys"], package_key) for meter in document["meters"]}


def _meter_keys(keys: dict[str, dict[str, str]], package_key: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for role in sorted(keys, key=lambda name: name != "master"):
        under = {"package": package_key, "master": found.get("master", b"")}[keys[role]["under"]]
        found[role] = unwrap(under, bytes.fromhex(keys[role]["wrapped"]))
    return found
