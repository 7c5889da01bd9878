"""The request for an approval: exactly what is to be done, which a second officer reads and signs.

    {"format": "hsmkm-approval-request/1", "id": UUID, "party": name, "system_title": 16 hex digits in capitals,
     "action": word, "subject": text, "request": {...}, "digest": hex, "requested_by": name,
     "created": RFC 3339, "expires": RFC 3339}

`digest` is the SHA-256 of the canonical form (RFC 8785) of `request`, and `id` is random, so that no two requests are
alike. A request is written in canonical form, and signed as it stands: the signed file is the container of packages
and receipts, which `openssl cms -sign -cades` writes too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hsmkm.errors import Fault, InputError
from hsmkm.packages.container import Signed, open_container
from hsmkm.packages.fields import Fields, time_text
from hsmkm.packages.strict_json import canonical, parse

FORMAT = "hsmkm-approval-request/1"
MAX_REQUEST = 64 * 1024
MAX_SIGNED = 128 * 1024
MAX_SUBJECT = 256
SHA256_OCTETS = 32
_MEMBERS = ("format", "id", "party", "system_title", "action", "subject", "request", "digest", "requested_by")


def digest_of(request: Mapping[str, object]) -> bytes:
    """Digest what is to be done: SHA-256 (32 octets) of its canonical form."""
    return hashlib.sha256(canonical(dict(request))).digest()


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """What somebody asks a second officer to approve, for one party; `request` holds every detail that matters."""

    id: str
    party: str
    system_title: bytes
    action: str
    subject: str
    request: Mapping[str, object]
    requested_by: str
    created: datetime
    expires: datetime

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the canonical form of `request` (32 octets)."""
        return digest_of(self.request)

    def encode(self) -> bytes:
        """Return the canonical octets; raise InputError for what `parse_request` would refuse."""
        data = canonical(
            {
                "format": FORMAT,
                "id": self.id,
                "party": self.party,
                "system_title": self.system_title.hex().upper(),
                "action": self.action,
                "subject": self.subject,
                "request": dict(self.request),
                "digest": self.digest.hex(),
                "requested_by": self.requested_by,
                "created": time_text(self.created),
                "expires": time_text(self.expires),
            }
        )
        parse_request(data)
        return data


def parse_request(data: bytes) -> ApprovalRequest:
    """Read a request; raise InputError with every fault of its form, and for any but the canonical form."""
    faults: list[str] = []
    document = parse(data, MAX_REQUEST, "the request")
    fields = Fields(document, "", faults)
    fields.exactly((*_MEMBERS, "created", "expires"))
    fields.one_of("format", (FORMAT,))
    request = fields.value("request")
    if not isinstance(request, dict):
        fields.wrong("request", "is not an object")
        request = {}
    found = ApprovalRequest(
        id=fields.uuid("id"),
        party=fields.text("party"),
        system_title=fields.title("system_title"),
        action=fields.text("action"),
        subject=fields.text("subject", MAX_SUBJECT),
        request=request,
        requested_by=fields.text("requested_by"),
        created=fields.time("created"),
        expires=fields.time("expires"),
    )
    if fields.octets("digest", SHA256_OCTETS) != found.digest:
        fields.wrong("digest", "is not that of the request")
    if canonical(document) != data:
        fields.wrong("document", "is not in canonical form")
    if faults:
        raise InputError("the request has faults of form", [Fault("request", 0, 0, text) for text in faults])
    return found


def open_approval(data: bytes) -> tuple[ApprovalRequest, Signed]:
    """Verify the signature over a request and parse it; raise InputError or IntegrityError.

    Whether the signer may approve it is for `hsmkm.steps.approve`.
    """
    if len(data) > MAX_SIGNED:
        raise InputError(f"the approval is larger than {MAX_SIGNED} octets")
    signed = open_container(data)
    return parse_request(signed.content), signed
