"""The signed container of packages and receipts: CMS SignedData in DER (RFC 5652 section 5), a `.p7m` file.

There is exactly one signer, an ECDSA key on P-256 with SHA-256 or on P-384 with SHA-384, and the signed attributes are
contentType, messageDigest, signingTime and signing-certificate-v2 (RFC 5035), no more and no fewer. The last of these
binds the signature to one certificate, so that it cannot be moved to another certificate of the same key. The chain is
included. Nothing but DER is accepted, and nothing after it: there is one form for one content.
"""

# ruff: noqa: ANN401 - asn1crypto has no types

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from asn1crypto import algos, cms, core, tsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import InputError, IntegrityError
from hsmkm.pki.certificates import parse_certificate, public_key
from hsmkm.pki.der import check_der
from hsmkm.pki.profiles import hash_for

MAX_CONTAINER = 80 << 20
MAX_CERTIFICATES = 6

_GENERALIZED_FROM = 2050
_CERTIFICATE_DIGESTS = ("sha256", "sha384", "sha512")

_ATTRIBUTES = ("content_type", "message_digest", "signing_time", "signing_certificate_v2")


@dataclass(frozen=True, slots=True)
class Signed:
    """A container whose signature holds; whether its signer is to be believed is for the trust store to say."""

    content: bytes = field(repr=False)
    signer: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    signed_at: datetime


def sign_content(
    content: bytes,
    signer: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate],
    now: datetime,
) -> bytes:
    """Sign the content and return the container in DER; raise IntegrityError where the key is not the certified one."""
    digest = hash_for(signer.curve).name
    attributes = _signed_attributes(content, certificate, digest, now)
    signature = signer.sign(attributes.dump(), ec.ECDSA(hash_for(signer.curve)))
    _check_signature(certificate, signature, attributes.dump())
    included = [asn1_x509.Certificate.load(one.public_bytes(Encoding.DER)) for one in (certificate, *chain)]
    signer_info = {
        "version": "v1",
        "sid": cms.SignerIdentifier(
            "issuer_and_serial_number", {"issuer": included[0].issuer, "serial_number": included[0].serial_number}
        ),
        "digest_algorithm": {"algorithm": digest},
        "signed_attrs": attributes,
        "signature_algorithm": {"algorithm": f"{digest}_ecdsa"},
        "signature": signature,
    }
    data = cms.SignedData(
        {
            "version": "v1",
            "digest_algorithms": [{"algorithm": digest}],
            "encap_content_info": {"content_type": "data", "content": content},
            "certificates": included,
            "signer_infos": [signer_info],
        }
    )
    return bytes(cms.ContentInfo({"content_type": "signed_data", "content": data}).dump())


def open_container(data: bytes) -> Signed:
    """Parse strictly and verify the signature.

    Raises InputError where the form is wrong and IntegrityError where the digest or the signature does not fit.
    """
    if len(data) > MAX_CONTAINER:
        raise InputError(f"the container is larger than {MAX_CONTAINER} octets")
    try:
        parts = _read(data)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise InputError("the container is not CMS SignedData in DER", hint="was the file cut or converted?") from error
    certificates = [parse_certificate(der) for der in parts.certificates]
    signer = _signer(parts, certificates)
    _check_algorithms(parts, signer)
    _check_attributes(parts, signer)
    _check_signature(signer, parts.signature, parts.attributes)
    chain = tuple(one for one in certificates if one is not signer)
    return Signed(parts.content, signer, chain, parts.signed_at)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Everything that a container says, read and not yet believed; structures are in DER."""

    content: bytes = field(repr=False)
    certificates: tuple[bytes, ...]
    issuer: bytes
    serial: int
    digests: tuple[str, str]
    signature_algorithm: str
    signature: bytes
    attributes: bytes
    content_type: str
    message_digest: bytes
    signed_at: datetime
    certificate_digest: tuple[str, bytes]


def _signed_attributes(content: bytes, certificate: x509.Certificate, digest: str, now: datetime) -> Any:
    hashed = hashlib.new(digest, certificate.public_bytes(Encoding.DER)).digest()
    identified = {"cert_hash": hashed}
    if digest != "sha256":
        identified["hash_algorithm"] = algos.DigestAlgorithm({"algorithm": digest})
    values: dict[str, list[Any]] = {
        "content_type": ["data"],
        "message_digest": [hashlib.new(digest, content).digest()],
        "signing_time": [_time(now)],
        "signing_certificate_v2": [tsp.SigningCertificateV2({"certs": [identified]})],
    }
    return cms.CMSAttributes([{"type": name, "values": values[name]} for name in _ATTRIBUTES])


def _time(moment: datetime) -> Any:
    """Return UTCTime until 2049 and GeneralizedTime from then on (RFC 5652 section 11.3)."""
    whole = moment.astimezone(UTC).replace(microsecond=0)
    if whole.year < _GENERALIZED_FROM:
        return cms.Time({"utc_time": core.UTCTime(whole)})
    return cms.Time({"general_time": core.GeneralizedTime(whole)})


def _read(data: bytes) -> _Parts:
    """Take a container apart; ValueError and what else asn1crypto raises where the form is not that of this module."""
    check_der(data)
    outer = cms.ContentInfo.load(data, strict=True)
    signed = outer["content"]
    _must(outer["content_type"].native == "signed_data" and signed["version"].native == "v1")
    _must(len(signed["signer_infos"]) == 1 and len(signed["digest_algorithms"]) == 1 and not signed["crls"].native)
    certificates = tuple(one.chosen.dump() for one in signed["certificates"])
    _must(0 < len(certificates) <= MAX_CERTIFICATES and list(certificates) == sorted(certificates))
    wrapped, info = signed["encap_content_info"], signed["signer_infos"][0]
    _must(wrapped["content_type"].native == "data" and isinstance(wrapped["content"].native, bytes))
    _must(info["version"].native == "v1" and not info["unsigned_attrs"].native)
    attributes = _attributes(info)
    named = attributes["signing_certificate_v2"]["certs"][0]
    return _Parts(
        content=wrapped["content"].native,
        certificates=certificates,
        issuer=info["sid"].chosen["issuer"].dump(),
        serial=info["sid"].chosen["serial_number"].native,
        digests=(_algorithm(signed["digest_algorithms"][0]), _algorithm(info["digest_algorithm"])),
        signature_algorithm=_algorithm(info["signature_algorithm"]),
        signature=info["signature"].native,
        attributes=info["signed_attrs"].untag().dump(),
        content_type=attributes["content_type"].native,
        message_digest=attributes["message_digest"].native,
        signed_at=attributes["signing_time"].native,
        certificate_digest=(_algorithm(named["hash_algorithm"]), named["cert_hash"].native),
    )


def _attributes(info: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in info["signed_attrs"]:
        name = attribute["type"].native
        _must(name not in found and len(attribute["values"]) == 1)
        found[name] = attribute["values"][0]
    _must(found.keys() == set(_ATTRIBUTES) and isinstance(found["signing_time"].native, datetime))
    return found


def _algorithm(identifier: Any) -> str:
    """Return the name of an algorithm, whose parameters must be absent or NULL."""
    _must(identifier["parameters"].native is None)
    return str(identifier["algorithm"].native)


def _must(condition: object) -> None:
    if not condition:
        raise ValueError("not the one form of a container")


def _signer(parts: _Parts, certificates: Sequence[x509.Certificate]) -> x509.Certificate:
    named = (parts.issuer, parts.serial)
    found = [one for one in certificates if (one.issuer.public_bytes(), one.serial_number) == named]
    if len(found) != 1:
        raise InputError("the signer's certificate is not included exactly once")
    return found[0]


def _check_algorithms(parts: _Parts, signer: x509.Certificate) -> None:
    curve = public_key(signer).curve
    digest = hash_for(curve).name
    if set(parts.digests) != {digest} or parts.signature_algorithm != f"{digest}_ecdsa":
        raise InputError(f"the signature is not ECDSA with {digest}, which goes with {curve.name}")


def _check_attributes(parts: _Parts, signer: x509.Certificate) -> None:
    if parts.content_type != "data":
        raise InputError("the signed content type is not data")
    if not hmac.compare_digest(parts.message_digest, hashlib.new(parts.digests[0], parts.content).digest()):
        raise IntegrityError("the content does not fit the digest that was signed", hint="ask the sender for it again")
    algorithm, digest = parts.certificate_digest
    if algorithm not in _CERTIFICATE_DIGESTS:
        raise InputError(f"signing-certificate-v2 uses {algorithm}")
    if not hmac.compare_digest(digest, hashlib.new(algorithm, signer.public_bytes(Encoding.DER)).digest()):
        raise IntegrityError("the signature belongs to another certificate than the one included")


def _check_signature(signer: x509.Certificate, signature: bytes, attributes: bytes) -> None:
    key = public_key(signer)
    try:
        key.verify(signature, attributes, ec.ECDSA(hash_for(key.curve)))
    except InvalidSignature as error:
        raise IntegrityError("the signature does not verify under the signer's certificate") from error
