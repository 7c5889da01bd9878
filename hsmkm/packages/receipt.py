"""The receipt of a package: what its recipient did with it, signed like the package itself.

    {"format": "hsmkm-key-receipt/1", "package": UUID, "sha256": hex of the .p7m, "result": "accepted" | "refused",
     "reasons": [text], "time": RFC 3339}

A package is taken whole or not at all; the reasons of a refusal say everything that was wrong, and never a key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.errors import Fault, InputError
from hsmkm.packages.container import Signed, open_container, sign_content
from hsmkm.packages.fields import Fields, time_text
from hsmkm.packages.strict_json import canonical, parse

FORMAT = "hsmkm-key-receipt/1"
ACCEPTED = "accepted"
REFUSED = "refused"
MAX_RECEIPT = 1 << 20
MAX_REASONS = 100
MAX_REASON = 500
SHA256_OCTETS = 32


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one package file."""

    package: str
    sha256: bytes
    result: str
    reasons: tuple[str, ...]
    time: datetime

    @property
    def accepted(self) -> bool:
        """Whether the keys of the package are now durable at its recipient."""
        return self.result == ACCEPTED

    def encode(self) -> bytes:
        """Return the content octets; raise InputError for what `parse_receipt` would refuse."""
        document = {
            "format": FORMAT,
            "package": self.package,
            "sha256": self.sha256.hex(),
            "result": self.result,
            "reasons": list(self.reasons),
            "time": time_text(self.time),
        }
        data = canonical(document)
        parse_receipt(data)
        return data


def receipt_for(package_id: str, package: bytes, reasons: Iterable[str], now: datetime) -> Receipt:
    """Return the receipt of a package file: accepted where there is no reason against it."""
    texts = tuple(_shown(reason) for reason in reasons)
    if len(texts) > MAX_REASONS:
        texts = (*texts[: MAX_REASONS - 1], f"and {len(texts) - MAX_REASONS + 1} more")
    return Receipt(package_id, hashlib.sha256(package).digest(), REFUSED if texts else ACCEPTED, texts, now)


def sign_receipt(
    receipt: Receipt,
    signer: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate],
    now: datetime,
) -> bytes:
    """Sign a receipt with the recipient's package-signing key; raises as `sign_content`."""
    return sign_content(receipt.encode(), signer, certificate, chain, now)


def open_receipt(data: bytes) -> tuple[Receipt, Signed]:
    """Verify the signature and parse the receipt; raise InputError or IntegrityError.

    Whether the signer is the recipient the package went to is checked by `send.check_receipt`.
    """
    if len(data) > MAX_RECEIPT:
        raise InputError(f"the receipt is larger than {MAX_RECEIPT} octets")
    signed = open_container(data)
    return parse_receipt(signed.content), signed


def parse_receipt(data: bytes) -> Receipt:
    """Read the content of a receipt; raise InputError with every fault of its form."""
    faults: list[str] = []
    fields = Fields(parse(data, MAX_RECEIPT, "the receipt"), "", faults)
    fields.exactly(("format", "package", "sha256", "result", "reasons", "time"))
    fields.one_of("format", (FORMAT,))
    receipt = Receipt(
        package=fields.uuid("package"),
        sha256=fields.octets("sha256", SHA256_OCTETS),
        result=fields.one_of("result", (ACCEPTED, REFUSED)),
        reasons=tuple(_reasons(fields)),
        time=fields.time("time"),
    )
    if receipt.accepted == bool(receipt.reasons):
        fields.wrong("reasons", "do not go with the result")
    if faults:
        raise InputError("the receipt has faults of form", [Fault("receipt", 0, 0, text) for text in faults])
    return receipt


def _reasons(fields: Fields) -> Iterator[str]:
    values = fields.value("reasons")
    if not isinstance(values, list) or len(values) > MAX_REASONS:
        fields.wrong("reasons", f"is not a list of at most {MAX_REASONS}")
        return
    for value in values:
        if not isinstance(value, str) or not 0 < len(value) <= MAX_REASON or not value.isprintable():
            fields.wrong("reasons", "holds something else than printable text")
        else:
            yield value


def _shown(reason: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in reason)[:MAX_REASON] or "no reason given"
